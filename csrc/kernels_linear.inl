// Fully connected layer for one image: y = W x with x gathered.

#if defined(__AVX2__)
// Ways to add value * x[column] to a vector of sums, for as many columns as it has.

// Loads that fill a register one by one: on AMD's processors gather instructions take half as long again.
struct Loads {
  using Sum = __m128;
  static constexpr uint32_t kColumns = 4;
  static Sum zero() { return _mm_setzero_ps(); }
  template <class Type>
  static Sum add(Sum sum, const float* x, const uint16_t* column, const typename Type::Stored* value) {
    uint64_t columns;
    memcpy(&columns, column, sizeof columns);
    __m128 v = _mm_load_ss(x + (columns & 0xffff));
    v = _mm_insert_ps(v, _mm_load_ss(x + ((columns >> 16) & 0xffff)), 0x10);
    v = _mm_insert_ps(v, _mm_load_ss(x + ((columns >> 32) & 0xffff)), 0x20);
    v = _mm_insert_ps(v, _mm_load_ss(x + (columns >> 48)), 0x30);
    return _mm_fmadd_ps(Type::four(value), v, sum);
  }
  static __m128 halved(Sum sum) { return sum; }
};

// On Intel's they are as fast from the first-level cache, and leave the processor room to wait for more of
// the weights at once.
struct Instructions {
  using Sum = __m256;
  static constexpr uint32_t kColumns = 8;
  static Sum zero() { return _mm256_setzero_ps(); }
  template <class Type>
  static Sum add(Sum sum, const float* x, const uint16_t* column, const typename Type::Stored* value) {
    const __m128i columns = _mm_loadu_si128(reinterpret_cast<const __m128i*>(column));
    const __m256 v = _mm256_i32gather_ps(x, _mm256_cvtepu16_epi32(columns), 4);
    return _mm256_fmadd_ps(Type::eight(value), v, sum);
  }
  static __m128 halved(Sum sum) {
    return _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  }
};
#else
struct Loads {};
#endif

template <class Way, class Type>
void gather_rows(const float* x, const uint16_t* column, const void* values, const uint32_t* rowptr,
                 const float* bias, const float* residual, float* y, int64_t rows, float low, float high) {
  const auto* value = static_cast<const typename Type::Stored*>(values);
  for (int64_t r = 0; r < rows; ++r) {
    uint32_t e = rowptr[r];
    const uint32_t end = rowptr[r + 1];
    float total = bias ? bias[r] : 0.0f;
#if defined(__AVX2__)
    constexpr uint32_t kColumns = Way::kColumns;
    typename Way::Sum sum[4] = {Way::zero(), Way::zero(), Way::zero(), Way::zero()};
    auto take = [&](typename Way::Sum& s, uint32_t at) __attribute__((always_inline)) {
      s = Way::template add<Type>(s, x, column + at, value + at);
    };
    for (; e + 64 <= end; e += 64) {
      // Rows follow each other in memory; fetching well ahead keeps the stream busy over row ends.
      constexpr uint32_t line = 64 / sizeof(typename Type::Stored);
      for (uint32_t i = 0; i < 64; i += line) __builtin_prefetch(value + e + kWeightsAhead + i);
      for (uint32_t i = 0; i < 64; i += 32) __builtin_prefetch(column + e + kWeightsAhead + i);
#pragma GCC unroll 16
      for (uint32_t u = 0; u < 64 / kColumns; ++u) take(sum[u % 4], e + kColumns * u);
    }
    for (int u = 0; e + kColumns <= end; e += kColumns, ++u) take(sum[u % 4], e);
    const __m128 half = _mm_add_ps(_mm_add_ps(Way::halved(sum[0]), Way::halved(sum[1])),
                                   _mm_add_ps(Way::halved(sum[2]), Way::halved(sum[3])));
    const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
    total += _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
    for (; e < end; ++e) total += Type::one(value[e]) * x[column[e]];
#else
    float sum[4] = {};
    for (; e + 4 <= end; e += 4)
      for (int u = 0; u < 4; ++u) sum[u] += Type::one(value[e + u]) * x[column[e + u]];
    for (; e < end; ++e) total += Type::one(value[e]) * x[column[e]];
    total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
#endif
    if (residual) total += residual[r];
    total = total < low ? low : total;
    y[r] = total > high ? high : total;
  }
}
