// Loads and stores of some lanes of a vector, and of elements that lie a stride apart.

// Masks of AVX-512, whose instructions take vectors of 8 and of 16 floats.
#if defined(__AVX512F__)
#define FINEPRUNING_MASKS 1
#if FINEPRUNING_VECTOR_FLOATS == 16
typedef __mmask16 Mask;
inline V load_masked(Mask lanes, const float* p) {
  return reinterpret_cast<V>(_mm512_maskz_loadu_ps(lanes, p));
}
inline void store_masked(Mask lanes, float* p, V v) {
  _mm512_mask_storeu_ps(p, lanes, reinterpret_cast<__m512>(v));
}
#else
typedef __mmask8 Mask;
inline V load_masked(Mask lanes, const float* p) {
  return reinterpret_cast<V>(_mm256_maskz_loadu_ps(lanes, p));
}
inline void store_masked(Mask lanes, float* p, V v) {
  _mm256_mask_storeu_ps(p, lanes, reinterpret_cast<__m256>(v));
}
#endif
#else
#define FINEPRUNING_MASKS 0
#endif

// The first lanes of a vector: a map's edge cuts the others off. `store_first` writes no other.
#if FINEPRUNING_MASKS
typedef Mask First;
inline First first_lanes(int64_t n) { return static_cast<First>((1u << n) - 1); }
inline V load_first(First lanes, const float* p) { return load_masked(lanes, p); }
inline void store_first(First lanes, float* p, V v) { store_masked(lanes, p, v); }
#else
typedef int First;  // how many
inline First first_lanes(int64_t n) { return static_cast<First>(n); }
inline V load_first(First lanes, const float* p) {
  if (lanes == VL) return loadu(p);
  float part[VL] = {};
  for (int i = 0; i < lanes; ++i) part[i] = p[i];
  V v;
  memcpy(&v, part, sizeof v);
  return v;
}
inline void store_first(First lanes, float* p, V v) {
  if (lanes == VL) return storeu(p, v);
  float part[VL];
  memcpy(part, &v, sizeof v);
  // Powers of two at a time: masked stores are slow on AMD before Zen 4.
  const float* from = part;
#pragma GCC unroll 4
  for (int size = VL / 2; size > 0; size /= 2)
    if (lanes & size) {
      memcpy(p, from, static_cast<size_t>(size) * sizeof *p);
      p += size, from += size;
    }
}
#endif
// Writes an aligned vector past the caches, where it is a line. The fence comes after the last.
inline void store_streamed(float* p, V v) {
#if FINEPRUNING_MASKS && FINEPRUNING_VECTOR_FLOATS == 16
  _mm512_stream_ps(p, reinterpret_cast<__m512>(v));
#else
  store(p, v);
#endif
}
inline void fence_streamed() {
#if FINEPRUNING_MASKS && FINEPRUNING_VECTOR_FLOATS == 16
  _mm_sfence();
#endif
}

inline V load_lanes(const float* p, int64_t n) { return load_first(first_lanes(n), p); }
inline void store_lanes(float* p, V v, int64_t n) { store_first(first_lanes(n), p, v); }

#if FINEPRUNING_MASKED_LOADS
typedef int32_t VI __attribute__((vector_size(VL * 4)));
// Inside: lanes that may be read; others are zero. `a & b` are those of both.
// lane_numbers: 0, 1, 2 and so on.
// lanes_below: lanes l with 0 <= x[l] < n.
#if FINEPRUNING_VECTOR_FLOATS == 16
inline __m512i lane_numbers() {
  return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
inline V even_lanes(V a, V b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return reinterpret_cast<V>(
      _mm512_permutex2var_ps(reinterpret_cast<__m512>(a), even, reinterpret_cast<__m512>(b)));
}
inline V swap_pairs(V v) { return reinterpret_cast<V>(_mm512_permute_ps(reinterpret_cast<__m512>(v), 0xb1)); }
#else
inline __m256i lane_numbers() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
inline V even_lanes(V a, V b) {
  const __m256d halves =
      _mm256_castps_pd(_mm256_shuffle_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), 0x88));
  return reinterpret_cast<V>(_mm256_permute4x64_pd(halves, 0xd8));
}
inline V swap_pairs(V v) { return reinterpret_cast<V>(_mm256_permute_ps(reinterpret_cast<__m256>(v), 0xb1)); }
#endif

#if FINEPRUNING_MASKS
typedef Mask Inside;
inline Inside lanes_between(int64_t low, int64_t high) {
  return static_cast<Inside>((1u << high) - (1u << low));
}
inline V load_inside(Inside inside, const float* p) { return load_masked(inside, p); }
#if FINEPRUNING_VECTOR_FLOATS == 16
inline Inside lanes_below(VI x, int n) {
  return _mm512_cmplt_epu32_mask(reinterpret_cast<__m512i>(x), _mm512_set1_epi32(n));
}
inline V gather_inside(Inside inside, const float* p, int64_t step) {
  const __m512i index = _mm512_mullo_epi32(_mm512_set1_epi32(static_cast<int>(step)), lane_numbers());
  return reinterpret_cast<V>(_mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside, index, p, 4));
}
#else
inline Inside lanes_below(VI x, int n) {
  return _mm256_cmplt_epu32_mask(reinterpret_cast<__m256i>(x), _mm256_set1_epi32(n));
}
inline V gather_inside(Inside inside, const float* p, int64_t step) {
  const __m256i index = _mm256_mullo_epi32(_mm256_set1_epi32(static_cast<int>(step)), lane_numbers());
  return reinterpret_cast<V>(_mm256_mmask_i32gather_ps(_mm256_setzero_ps(), inside, index, p, 4));
}
#endif
#else
typedef __m256i Inside;
inline Inside lanes_between(int64_t low, int64_t high) {
  const __m256i lane = lane_numbers();
  return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(low)), lane),
                             _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(high)), lane));
}
inline V load_inside(Inside inside, const float* p) {
  return reinterpret_cast<V>(_mm256_maskload_ps(p, inside));
}
inline Inside lanes_below(VI x, int n) {
  const __m256i v = reinterpret_cast<__m256i>(x);
  return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_setzero_si256(), v),
                             _mm256_cmpgt_epi32(_mm256_set1_epi32(n), v));
}
inline V gather_inside(Inside inside, const float* p, int64_t step) {
  const __m256i index = _mm256_mullo_epi32(_mm256_set1_epi32(static_cast<int>(step)), lane_numbers());
  return reinterpret_cast<V>(
      _mm256_mask_i32gather_ps(_mm256_setzero_ps(), p, index, _mm256_castsi256_ps(inside), 4));
}
#endif

// Lanes l with 0 <= x + l < width and l < count.
inline Inside lanes_inside(int64_t x, int64_t width, int64_t count) {
  const int64_t low = imin(imax(-x, 0), VL), high = imax(imin(imin(width - x, count), VL), low);
  return lanes_between(low, high);
}

// A vector's worth of elements of a row from x on that lie STEP apart, where columns [0, width) can be read
// and others are zero; only the first `count` are wanted. The same for any row.
template <int STEP>
struct Take {
  Inside inside[STEP];

  Take() = default;
  Take(int64_t x, int64_t width, int64_t count) {
    for (int q = 0; q < STEP; ++q) inside[q] = lanes_inside(x + q * VL, width, STEP * count - q * VL);
  }
  V from(const float* p) const;
};
template <>
inline V Take<1>::from(const float* p) const {
  return load_inside(inside[0], p);
}
template <>
inline V Take<2>::from(const float* p) const {
  return even_lanes(load_inside(inside[0], p), load_inside(inside[1], p + VL));
}
template <>
inline V Take<4>::from(const float* p) const {
  return even_lanes(even_lanes(load_inside(inside[0], p), load_inside(inside[1], p + VL)),
                    even_lanes(load_inside(inside[2], p + 2 * VL), load_inside(inside[3], p + 3 * VL)));
}

// The same for any step, of one row.
inline V take(const float* row, int64_t x, int64_t step, int64_t count, int64_t width) {
  if (step == 1) return Take<1>(x, width, count).from(row + x);
  if (step == 2) return Take<2>(x, width, count).from(row + x);
  if (step == 4) return Take<4>(x, width, count).from(row + x);
  const int64_t low = x >= 0 ? 0 : imin((-x + step - 1) / step, VL);
  const int64_t high = imax(x >= width ? 0 : imin(imin((width - x + step - 1) / step, count), VL), low);
  return gather_inside(lanes_between(low, high), row + x, step);
}
#endif
