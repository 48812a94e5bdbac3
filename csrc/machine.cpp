#include "machine.hpp"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "isa.hpp"

namespace finepruning {
namespace {

// Best of many short runs: what the machine can do, not what other programs leave.
template <class Run>
double best_rate(int threads, int repeats, Run run) {
  double best = 0;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    double done = 0, start = 0, end = 0;
#pragma omp parallel num_threads(threads) reduction(+ : done)
    {
#pragma omp barrier
#pragma omp master
      start = omp_get_wtime();
      done = run(repeat, omp_get_thread_num());
#pragma omp barrier
#pragma omp master
      end = omp_get_wtime();
    }
    best = std::max(best, done / (end - start));
  }
  return best * 1e-9;
}

}  // namespace

double fma_peak(int threads) {
  const Isa& isa = select_isa(Across::kMap);
  return best_rate(threads, 100, [&](int, int) { return isa.fma_loop(100'000); });
}

double read_bandwidth(int threads) {
  const Isa& isa = select_isa(Across::kMap);
  const size_t bytes = size_t{1} << 30;  // beyond any last-level cache
  constexpr size_t kRuns = 32;           // each reads its own part, all of them twice
  std::unique_ptr<char, decltype(&std::free)> data(static_cast<char*>(std::aligned_alloc(4096, bytes)),
                                                   &std::free);
  if (!data) throw std::bad_alloc();
  std::memset(data.get(), 0, bytes);
  const size_t share = bytes / kRuns / static_cast<size_t>(threads) / 64 * 64;
  return best_rate(threads, 2 * kRuns, [&](int repeat, int thread) {
    const size_t part =
        static_cast<size_t>(repeat) % kRuns * static_cast<size_t>(threads) + static_cast<size_t>(thread);
    const auto* start = reinterpret_cast<const float*>(data.get() + share * part);
    volatile double sink = isa.read_loop(start, static_cast<int64_t>(share / 4));
    (void)sink;
    return static_cast<double>(share);
  });
}

}  // namespace finepruning
