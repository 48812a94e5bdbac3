// Cycles that a tile of sparse convolution takes on one core: what the choice of a tile rests on.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cycle_costs.hpp"

namespace finepruning {

// Bytes that a core's caches hold of one tile's data.
inline constexpr int64_t kFirstLevelBytes = 36 * 1024;    // of 32 or 48 KiB
inline constexpr int64_t kSecondLevelBytes = 700 * 1024;  // of 512 KiB or 1 MiB
inline constexpr int64_t kStreamedBytes = 24 << 20;       // of a result that no cache keeps until it is read

inline int distance(double map_bytes) { return map_bytes > 8e6 ? 2 : map_bytes > 1e6 ? 1 : 0; }

// One tile: `vectors` registers' worth of output for every row of a group.
struct TileWork {
  int64_t vectors;  // registers
  double vector_bytes;
  double rows;          // output channels of the group
  double row_nonzeros;  // mean, of a row
  int64_t blocks;       // input blocks packed one after the other
  int64_t block_bytes;  // of a packed block
  double packing;       // cycles, of all blocks together
  double map_bytes;     // of the output map: of one image, or of a vector of images
};

struct TileCycles {
  double total, packing;
};

// - A nonzero costs one fused multiply-add a register and something for its weight and address; where a block
//   exceeds the first-level cache, the part that misses costs more than the arithmetic;
// - a row's sums cross between the cache levels once a block, which costs as much as four nonzeros;
// - sums that exceed the second level cost more than twice that.
inline TileCycles tile_cycles(const TileWork& w, const CycleCosts& costs) {
  const double p = static_cast<double>(w.vectors);
  const double misses = 1.0 - static_cast<double>(std::min(kFirstLevelBytes, w.block_bytes)) /
                                  static_cast<double>(w.block_bytes);
  const double nonzero = std::max(p * 0.5 + p * 0.65 * misses + costs.nonzero + 0.04 * p,
                                  costs.latency / sets_of_sums(w.vectors));
  const double held = w.rows * p * w.vector_bytes + static_cast<double>(w.block_bytes);
  const double crossing =
      w.blocks > 1 && held > static_cast<double>(kSecondLevelBytes) ? 6.0 : costs.crossing;
  const double passes = static_cast<double>(w.blocks) + (w.blocks > 1 ? 1.0 : 0.0);
  const int to = distance(w.map_bytes);
  const double row = w.row_nonzeros * nonzero + passes * (costs.row + crossing * p) + costs.result_row[to] +
                     costs.result_vector[to] * p;
  return {w.rows * row + w.packing, w.packing};
}

}  // namespace finepruning
