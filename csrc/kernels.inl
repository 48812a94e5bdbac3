// The kernels, written once over a vector type. Each kernels_<isa>.cpp includes this file.
// No standard containers or algorithms here: an inline function compiled for AVX-512 must never be the
// copy that the linker keeps for a machine without it. Everything lives in an unnamed namespace.
#include <stdint.h>
#include <string.h>

#include "isa.hpp"

namespace finepruning {
namespace {

// Whether there are loads of some lanes of a vector, which the kernels below then use.
#if defined(__AVX2__)
#define FINEPRUNING_MASKED_LOADS 1
#else
#define FINEPRUNING_MASKED_LOADS 0
#endif

constexpr int VL = FINEPRUNING_VECTOR_FLOATS;
typedef float V __attribute__((vector_size(VL * 4)));
typedef float Vu __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef V Va __attribute__((may_alias));

inline V load(const void* p) { return *static_cast<const Va*>(p); }
inline V loadu(const float* p) { return *reinterpret_cast<const Vu*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<Va*>(p) = v; }
inline void storeu(float* p, V v) { *reinterpret_cast<Vu*>(p) = v; }
inline V splat(float x) { return x - V{}; }
// NaN passes through both, as it does through torch's relu.
inline V vmax(V low, V x) { return x < low ? low : x; }
inline V vmin(V high, V x) { return x > high ? high : x; }
inline V clamp(V x, float low, float high) { return vmin(splat(high), vmax(splat(low), x)); }
inline int64_t imin(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t imax(int64_t a, int64_t b) { return a > b ? a : b; }

// What the others are written in, so it comes before them.
#include "kernels_lanes.inl"

constexpr int kAhead = 6, kRunsAhead = 16;     // units between a prefetch and its use; short ones
constexpr int kShortFloats = 8 * kLineFloats;  // of a unit
constexpr int kWeightsAhead = 1024;            // nonzeros

#include "kernels_gather.inl"
#include "kernels_linear.inl"
#include "kernels_maps.inl"
#include "kernels_probe.inl"
#include "kernels_tile.inl"
#include "kernels_values.inl"

}  // namespace

extern const Isa FINEPRUNING_ISA_TABLE;
const Isa FINEPRUNING_ISA_TABLE = {
    FINEPRUNING_ISA_NAME,
    VL,
    kTiles,
    static_cast<int>(sizeof kTiles / sizeof kTiles[0]),
#if defined(__AVX2__) && !defined(__AVX512F__)
    &kAvx2Costs,
#else
    &kWideCosts,
#endif
    gather_rows_block,
    gather_flat_block,
    gather_lanes_block,
    {{gather_rows<Loads, Float32>, gather_rows<Loads, Bfloat16>, gather_rows<Loads, Float16>},
#if defined(__AVX2__)
     {gather_rows<Instructions, Float32>, gather_rows<Instructions, Bfloat16>,
      gather_rows<Instructions, Float16>}
#endif
    },
    {nullptr, expand<Bfloat16>, expand<Float16>},
    pool,
    pool_lanes,
    elementwise,
    broadcast,
    to_lanes,
    from_lanes,
    fma_loop,
    read_loop,
};

}  // namespace finepruning
