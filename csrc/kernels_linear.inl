// Fully connected layer for one image: y = W x with x gathered.

#if defined(__AVX2__)
// x at four columns. Loads that fill a register one by one: gather instructions take half as long again.
inline __m128 gather_four(const float* x, const uint16_t* column) {
  uint64_t columns;
  memcpy(&columns, column, sizeof columns);
  __m128 v = _mm_load_ss(x + (columns & 0xffff));
  v = _mm_insert_ps(v, _mm_load_ss(x + ((columns >> 16) & 0xffff)), 0x10);
  v = _mm_insert_ps(v, _mm_load_ss(x + ((columns >> 32) & 0xffff)), 0x20);
  return _mm_insert_ps(v, _mm_load_ss(x + (columns >> 48)), 0x30);
}
#endif

template <class Type>
void gather_rows(const float* x, const uint16_t* column, const void* values, const uint32_t* rowptr,
                 const float* bias, const float* residual, float* y, int64_t rows, float low, float high) {
  const auto* value = static_cast<const typename Type::Stored*>(values);
  for (int64_t r = 0; r < rows; ++r) {
    uint32_t e = rowptr[r];
    const uint32_t end = rowptr[r + 1];
    float total = bias ? bias[r] : 0.0f;
#if defined(__AVX2__)
    __m128 sum[4] = {_mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps()};
    auto take = [&](__m128& s, uint32_t at) {
      s = _mm_fmadd_ps(Type::four(value + at), gather_four(x, column + at), s);
    };
    for (; e + 64 <= end; e += 64) {
      // Rows follow each other in memory; fetching well ahead keeps the stream busy over row ends.
      constexpr uint32_t line = 64 / sizeof(typename Type::Stored);
      for (uint32_t i = 0; i < 64; i += line) __builtin_prefetch(value + e + kWeightsAhead + i, 0, 0);
      for (uint32_t i = 0; i < 64; i += 32) __builtin_prefetch(column + e + kWeightsAhead + i, 0, 0);
#pragma GCC unroll 16
      for (uint32_t u = 0; u < 16; ++u) take(sum[u % 4], e + 4 * u);
    }
    for (int u = 0; e + 4 <= end; e += 4, ++u) take(sum[u % 4], e);
    const __m128 half = _mm_add_ps(_mm_add_ps(sum[0], sum[1]), _mm_add_ps(sum[2], sum[3]));
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
