#include "isa.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>

namespace finepruning {

#ifdef FINEPRUNING_X86
extern const Isa kIsaAvx512;
extern const Isa kIsaAvx512vl;
extern const Isa kIsaAvx2;
#endif
extern const Isa kIsaPortable;

const Isa* find_isa(const char* name) {
#ifdef FINEPRUNING_X86
  const bool whole = std::strcmp(name, "avx512") == 0;
  if (whole || std::strcmp(name, "avx512vl") == 0)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
               ? (whole ? &kIsaAvx512 : &kIsaAvx512vl)
               : nullptr;
  if (std::strcmp(name, "avx2") == 0)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
               ? &kIsaAvx2
               : nullptr;
#endif
  return std::strcmp(name, "portable") == 0 ? &kIsaPortable : nullptr;
}

namespace {

template <class Run>
double seconds_of(Run run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

#ifdef FINEPRUNING_X86
// Whether the machine computes more with whole vectors of AVX-512 than with halves: some processors split
// them (Zen 4), or have one unit for them and two for halves. Rates differ by two or not at all; the best of
// many short runs tells these apart on a busy machine, too. Intel's processors run whole vectors at half
// their rate or less until they have raised their voltage, for up to .85 ms where measured: the probe goes on
// until whole vectors have been faster or several times that has passed.
bool wide_arithmetic() {
  constexpr int64_t kIterations = 400;  // 1 to 3 us
  constexpr int kSettled = 8, kRuns = 512;
  constexpr std::chrono::milliseconds kTime{4};
  double rates[2] = {};
  const auto begin = std::chrono::steady_clock::now();
  for (int run = 0; run < kRuns || std::chrono::steady_clock::now() - begin < kTime; ++run) {
    for (const Isa* isa : {&kIsaAvx512vl, &kIsaAvx512}) {
      double done = 0;
      const double seconds = seconds_of([&] { done = isa->fma_loop(kIterations); });
      double& rate = rates[isa == &kIsaAvx512];
      rate = std::max(rate, done / seconds);
    }
    if (run >= kSettled && rates[1] > 1.5 * rates[0]) return true;
  }
  return false;
}
#endif

// Whether gather instructions read columns faster than single loads, from the first-level cache.
bool gather_instructions(const Isa& isa) {
  constexpr int kRuns = 64;
  constexpr int64_t kRows = 8;
  constexpr uint32_t kNonzeros = 256;  // of a row: 1 to 2 us a run
  static float x[4096], value[kRows * kNonzeros], y[kRows];
  static uint16_t column[kRows * kNonzeros];
  uint32_t rowptr[kRows + 1] = {}, random = 1;
  for (int64_t r = 0; r < kRows; ++r) rowptr[r + 1] = rowptr[r] + kNonzeros;
  for (uint16_t& c : column) c = static_cast<uint16_t>((random = random * 1664525 + 1013904223) >> 20);
  double seconds[kGatherWays] = {1, 1};
  for (int run = 0; run < kRuns; ++run)
    for (int way = 0; way < kGatherWays; ++way)
      seconds[way] =
          std::min(seconds[way], seconds_of([&] {
                     isa.gather_rows[way][0](x, column, value, rowptr, nullptr, nullptr, y, kRows, 0, 1);
                   }));
  return seconds[1] < seconds[0];
}

const Isa& fastest_isa(Across across) {
#ifdef FINEPRUNING_X86
  if (find_isa("avx512") != nullptr) {
    static const bool wide = wide_arithmetic();
    return wide || across == Across::kMap ? kIsaAvx512 : kIsaAvx512vl;
  }
#endif
  const Isa* isa = find_isa("avx2");
  return isa != nullptr ? *isa : kIsaPortable;
}

// With half the images side by side, twice the channels fit into the first-level cache. Maps one by one gain
// nothing from half vectors: their tiles hold as much either way, and a nonzero costs less with fewer
// vectors.
constexpr const char* kSplit = "avx512-split";

}  // namespace

const Isa& select_isa(Across across) {
  const char* forced = std::getenv("FINEPRUNING_ISA");
  if (forced == nullptr || *forced == '\0') return fastest_isa(across);
  const bool split = std::strcmp(forced, kSplit) == 0;
  const Isa* isa = find_isa(!split ? forced : across == Across::kMap ? "avx512" : "avx512vl");
  if (isa == nullptr)
    throw IsaUnavailable("FINEPRUNING_ISA=" + std::string(forced) +
                         " is not available here; use avx512, avx512-split, avx512vl, avx2 or portable, "
                         "or unset it");
  return *isa;
}

GatherWay select_gather(const Isa& isa) {
  if (isa.gather_rows[static_cast<int>(GatherWay::kInstructions)][0] == nullptr) return GatherWay::kLoads;
  static const bool instructions = gather_instructions(isa);  // the same in every instruction set
  return instructions ? GatherWay::kInstructions : GatherWay::kLoads;
}

const char* isa_name() {
  const Isa &map = select_isa(Across::kMap), &images = select_isa(Across::kImages);
  return &map == &images ? map.name : kSplit;
}

}  // namespace finepruning
