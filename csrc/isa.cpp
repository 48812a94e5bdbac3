#include "isa.hpp"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace finepruning {

#ifdef FINEPRUNING_X86
extern const Isa kIsaAvx512;
extern const Isa kIsaAvx2;
#endif
extern const Isa kIsaPortable;

const Isa* find_isa(const char* name) {
#ifdef FINEPRUNING_X86
  if (std::strcmp(name, "avx512") == 0)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
               ? &kIsaAvx512
               : nullptr;
  if (std::strcmp(name, "avx2") == 0)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
               ? &kIsaAvx2
               : nullptr;
#endif
  return std::strcmp(name, "portable") == 0 ? &kIsaPortable : nullptr;
}

const Isa& select_isa() {
  if (const char* forced = std::getenv("FINEPRUNING_ISA"); forced != nullptr && *forced != '\0') {
    const Isa* isa = find_isa(forced);
    if (isa == nullptr)
      throw std::invalid_argument("FINEPRUNING_ISA=" + std::string(forced) +
                                  " is not available here; use avx512, avx2 or portable, or unset it");
    return *isa;
  }
  for (const char* name : {"avx512", "avx2"})
    if (const Isa* isa = find_isa(name)) return *isa;
  return kIsaPortable;
}

}  // namespace finepruning
