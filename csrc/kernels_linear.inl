// Fully connected layer for one image: y = W x with x gathered. Bound by the bytes of W.

template <class Type>
void gather_rows(const float* x, const uint16_t* column, const void* values, const uint32_t* rowptr,
                 const float* bias, const float* residual, float* y, int64_t rows, float low, float high) {
  const auto* value = static_cast<const typename Type::Stored*>(values);
  for (int64_t r = 0; r < rows; ++r) {
    uint32_t e = rowptr[r];
    const uint32_t end = rowptr[r + 1];
    float total = bias ? bias[r] : 0.0f;
#if defined(__AVX512F__)
    __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    auto take = [&](__m512& s, uint32_t at, __mmask16 mask) {
      const __m256i c = _mm256_maskz_loadu_epi16(mask, column + at);
      const __m512 gathered =
          _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, _mm512_cvtepu16_epi32(c), x, 4);
      s = _mm512_fmadd_ps(Type::some(value + at, mask), gathered, s);
    };
    for (; e + 64 <= end; e += 64) {
      // Rows follow each other in memory; fetching well ahead keeps the stream busy over row ends.
      constexpr uint32_t line = 64 / sizeof(typename Type::Stored);
      for (uint32_t ahead = 1024; ahead < 1024 + 64; ahead += line)
        __builtin_prefetch(value + e + ahead, 0, 0);
      __builtin_prefetch(column + e + 1024, 0, 0);
      __builtin_prefetch(column + e + 1056, 0, 0);
      for (int u = 0; u < 4; ++u) take(sum[u], e + 16 * u, 0xffff);
    }
    for (int u = 0; e < end; e += 16, ++u)
      take(sum[u], e, end - e >= 16 ? 0xffff : static_cast<__mmask16>((1u << (end - e)) - 1));
    total +=
        _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
#elif defined(__AVX2__)
    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (; e + 32 <= end; e += 32)
      for (int u = 0; u < 4; ++u) {
        const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(column + e + 8 * u));
        const __m256 gathered = _mm256_i32gather_ps(x, _mm256_cvtepu16_epi32(c), 4);
        sum[u] = _mm256_fmadd_ps(Type::eight(value + e + 8 * u), gathered, sum[u]);
      }
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
    for (int i = 0; i < 8; ++i) total += lanes[i];
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
