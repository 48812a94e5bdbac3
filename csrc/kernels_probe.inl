// What the machine can do at most: the floor that the benchmarks compare with.

double fma_loop(int64_t iterations) {
  constexpr int kChains = FINEPRUNING_TILE_VECTORS >= 28 ? 24 : 12;
  V sum[kChains];
  V a = splat(1.0f), b = splat(1e-9f);
#pragma GCC unroll 32
  for (int i = 0; i < kChains; ++i) sum[i] = splat(static_cast<float>(i));
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) sum[i] = a * b + sum[i];
    // The factors must look changed, or the compiler would fold the loop.
    __asm__ volatile("" : "+m"(a), "+m"(b));
  }
  V total = V{};
#pragma GCC unroll 32
  for (int i = 0; i < kChains; ++i) total += sum[i];
  __asm__ volatile("" : : "m"(total));
  return static_cast<double>(iterations) * kChains * VL;
}

constexpr int64_t kProbeAhead = 128 * kLineFloats;

double read_loop(const float* data, int64_t n) {
  V sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * VL <= n; i += 4 * VL) {
    // Hardware alone does not fetch ahead far enough everywhere.
    for (int u = 0; u < 4 * VL; u += kLineFloats) __builtin_prefetch(data + i + kProbeAhead + u);
    for (int u = 0; u < 4; ++u) sum[u] += loadu(data + i + u * VL);
  }
  V total = sum[0] + sum[1] + sum[2] + sum[3];
  return static_cast<double>(total[0]);
}
