// Cycles that a tile of sparse convolution takes on one core: what the choice of a tile rests on.
#pragma once

#include <algorithm>
#include <cstdint>

namespace finepruning {

// Bytes that a core's caches hold of one tile's data.
inline constexpr int64_t kFirstLevelBytes = 36 * 1024;    // of 32 or 48 KiB
inline constexpr int64_t kSecondLevelBytes = 700 * 1024;  // of 512 KiB or 1 MiB
inline constexpr int64_t kStreamedBytes = 24 << 20;       // of a result that no cache keeps until it is read

// One tile: `vectors` registers' worth of output for every row of a group.
struct TileWork {
  int64_t vectors;  // registers
  double vector_bytes;
  double rows;             // output channels of the group
  double row_nonzeros;     // mean, of a row
  int64_t blocks;          // input blocks packed one after the other
  int64_t block_bytes;     // of a packed block
  double packed_vectors;   // all blocks together
  double cycles_a_packed;  // to pack one vector
  double map_bytes;        // of the output map: of one image, or of a vector of images
};

struct TileCycles {
  double total, packing;
};

// Fitted to times of single tiles on a Zen 5 core (48 KiB and 1 MiB of cache, two 64-byte loads and one store
// a cycle). Constants fitted on a Zen 3 core with AVX2 (32 and 512 KiB) chose no faster tiles. What it says:
// - a nonzero costs one fused multiply-add a register and a little for its weight and address; where a block
//   exceeds the first-level cache, the part that misses costs more than the arithmetic;
// - a row's sums cross between the cache levels once a block, which costs as much as four nonzeros;
// - sums that exceed the second level cost more than twice that.
inline TileCycles tile_cycles(const TileWork& w) {
  const double p = static_cast<double>(w.vectors);
  const double misses = 1.0 - static_cast<double>(std::min(kFirstLevelBytes, w.block_bytes)) /
                                  static_cast<double>(w.block_bytes);
  const double nonzero = p * 0.5 + p * 0.65 * misses + 0.6 + 0.04 * p;
  const double held = w.rows * p * w.vector_bytes + static_cast<double>(w.block_bytes);
  const double crossing = w.blocks > 1 && held > static_cast<double>(kSecondLevelBytes) ? 6.0 : 2.0;
  const double passes = static_cast<double>(w.blocks) + (w.blocks > 1 ? 1.0 : 0.0);
  // The result goes further than the second level, which fetches few lines at a time slowly.
  const double far = w.map_bytes > 8e6 ? 100.0 + 5.0 * p : 0.0;
  const double row = w.row_nonzeros * nonzero + passes * (4.0 + crossing * p) + far;
  const double packing = w.packed_vectors * w.cycles_a_packed;
  return {w.rows * row + packing, packing};
}

}  // namespace finepruning
