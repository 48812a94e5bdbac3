// Cycles that a tile of sparse convolution takes on one core: what the choice of a tile rests on.
#pragma once

#include <algorithm>
#include <cstdint>

namespace finepruning {

// Bytes that a core's caches hold of one tile's data.
inline constexpr int64_t kFirstLevelBytes = 36 * 1024;    // of 48 KiB; weights stream through the rest
inline constexpr int64_t kSecondLevelBytes = 700 * 1024;  // of 1 MiB

// One tile: `vectors` registers' worth of output (of 16 lanes) for every row of a group.
struct TileWork {
  int64_t vectors;         // of 16 lanes
  double parts;            // registers that hold 16 lanes
  double rows;             // output channels of the group
  double row_nonzeros;     // mean, of a row
  int64_t blocks;          // input blocks packed one after the other
  int64_t block_bytes;     // of a packed block
  double packed_vectors;   // all blocks together
  double cycles_a_packed;  // to pack one vector of 16 lanes
  double map_bytes;        // of the output map: of one image, or of 16 in lanes
};

struct TileCycles {
  double total, packing;
};

// Fitted to times of single tiles on a Zen 5 core (48 KiB and 1 MiB of cache, two 64-byte loads and one store
// a cycle): there it chose a tile within a few percent of the fastest for 24 shapes. What it says:
// - a nonzero costs one fused multiply-add a register and a little for its weight and address; where a block
//   exceeds the first-level cache, the part that misses costs more than the arithmetic;
// - a row's sums cross between the cache levels once a block, which costs as much as five nonzeros;
// - sums that exceed the second level cost more than twice that.
inline TileCycles tile_cycles(const TileWork& w) {
  const double p = static_cast<double>(w.vectors) * w.parts;
  const double misses = 1.0 - static_cast<double>(std::min(kFirstLevelBytes, w.block_bytes)) /
                                  static_cast<double>(w.block_bytes);
  // Few sums cannot hide the latency of an addition; kernels of small tiles keep several a vector.
  const double sums = p >= 8 ? p : p >= 4 ? 2 * p : p >= 2 ? 4 * p : 8;
  const double nonzero = std::max(p * 0.5, p * 4.0 / sums) + p * 0.65 * misses + 1.2 + 0.04 * p;
  const double sum_bytes = w.rows * static_cast<double>(w.vectors) * 64.0;
  const double crossing =
      w.blocks > 1 && sum_bytes + static_cast<double>(w.block_bytes) > kSecondLevelBytes ? 6.0 : 2.5;
  const double passes = static_cast<double>(w.blocks) + (w.blocks > 1 ? 1.0 : 0.0);
  const double far = w.map_bytes > 8e6 ? 5.0 * p : 0.0;  // the result goes further than the second level
  const double row = w.row_nonzeros * nonzero + passes * (10.0 + crossing * p) + far;
  const double packing = w.packed_vectors * w.cycles_a_packed * w.parts;
  return {w.rows * row + packing, packing};
}

}  // namespace finepruning
