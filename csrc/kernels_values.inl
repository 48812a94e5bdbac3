// Weights of every stored type as float32 vectors.

inline float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

struct Float32 {
  using Stored = float;
  static float one(float v) { return v; }
#if defined(__AVX2__)
  static __m128 four(const float* p) { return _mm_loadu_ps(p); }
  static __m256 eight(const float* p) { return _mm256_loadu_ps(p); }
#endif
};

struct Bfloat16 {
  using Stored = uint16_t;
  static float one(uint16_t v) { return from_bits(static_cast<uint32_t>(v) << 16); }
#if defined(__AVX2__)
  static __m128 four(const uint16_t* p) {
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
  }
  static __m256 eight(const uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
#endif
#if defined(__AVX512F__)
  static __m512 some(const uint16_t* p, __mmask16 mask) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
  }
#endif
};

struct Float16 {
  using Stored = uint16_t;
  static float one(uint16_t v) {
    const uint32_t sign = (v & 0x8000u) << 16, rest = (v & 0x7fffu) << 13, exponent = rest & 0x0f800000u;
    if (exponent == 0x0f800000u) return from_bits(sign | 0x7f800000u | rest);  // infinite or NaN
    if (exponent != 0) return from_bits(sign | (rest + (112u << 23)));
    // Subnormal: put the fraction behind a leading one, then take that one away.
    const float x = from_bits(rest + (113u << 23)) - from_bits(113u << 23);
    return sign ? -x : x;
  }
#if defined(__AVX2__)
  static __m128 four(const uint16_t* p) {
    return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static __m256 eight(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
#endif
#if defined(__AVX512F__)
  static __m512 some(const uint16_t* p, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
  }
#endif
};

constexpr int64_t kExpandAhead = 2048;  // values

// float32 of n stored values; `out` is aligned to a vector, which may be half of what is written at once.
template <class Type>
void expand(const typename Type::Stored* value, float* out, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 32 <= n; i += 32) {
    // What the next calls will expand: they come in bursts, each too short for a hardware prefetcher.
    __builtin_prefetch(value + i + kExpandAhead);
    _mm512_storeu_ps(out + i, Type::some(value + i, 0xffff));
    _mm512_storeu_ps(out + i + 16, Type::some(value + i + 16, 0xffff));
  }
  for (; i + 16 <= n; i += 16) _mm512_storeu_ps(out + i, Type::some(value + i, 0xffff));
  const __mmask16 tail = static_cast<__mmask16>((1u << (n - i)) - 1);
  if (tail) _mm512_mask_storeu_ps(out + i, tail, Type::some(value + i, tail));
#else
#if defined(__AVX2__)
  for (; i + 32 <= n; i += 32) {
    __builtin_prefetch(value + i + kExpandAhead);
    for (int64_t j = i; j < i + 32; j += 8) _mm256_store_ps(out + j, Type::eight(value + j));
  }
  for (; i + 8 <= n; i += 8) _mm256_store_ps(out + i, Type::eight(value + i));
#endif
  for (; i < n; ++i) out[i] = Type::one(value[i]);
#endif
}
