// What the cost model knows of a machine: numbers alone, as each build of the kernels includes them.
#pragma once

#include <cstdint>

namespace finepruning {

// Where a map lies: in the second-level cache, in the last one, beyond it.
inline constexpr int kDistances = 3;

// Cycles of one core, as `TileCycles` uses them. What differs between the machines that they were fitted on.
struct CycleCosts {
  double nonzero;                    // for its weight and address
  double latency;                    // of a multiply-add, where a tile has too few sums to hide it
  double row;                        // of a block, for its count, its order and the end of its loop, and
  double crossing;                   // each vector of its sums, which go to the second level and back
  double result_row[kDistances];     // to write a row of the result, and
  double result_vector[kDistances];  // each of its vectors
  double lanes_vector;               // to pack a vector of a map in lanes, and
  double strided_vector;             // in addition where its neighbour lies in another line
  double packed_vector[kDistances];  // in addition for any vector that is packed, and
  double packed_run[kDistances];     // for each run of neighbouring vectors
};

// Fitted to times of single tiles on a Zen 5 core (48 KiB and 1 MiB of cache, two 64-byte loads and one store
// a cycle), for AVX-512 and the portable build.
inline constexpr CycleCosts kWideCosts{0.6,       0.0, 4.0, 2.0,        {0, 0, 100},
                                       {0, 0, 5}, 2.0, 0.0, {0, 5, 12}, {0, 0, 0}};
// Fitted to layers of ResNet-50, VGG-16 and AlexNet on two Zen 3 cores (32 and 512 KiB), every tile, whose
// input another step had just written.
inline constexpr CycleCosts kAvx2Costs{1.4,       4.3, 8.0, 2.5,         {0, 10, 20},
                                       {0, 2, 5}, 1.0, 2.5, {0, 1.5, 5}, {2, 8, 17}};

// Sets of sums that a tile keeps, so that a multiply-add need not wait for the one before it.
constexpr int sets_of_sums(int64_t vectors) { return vectors >= 8 ? 1 : vectors >= 2 ? 2 : 4; }

}  // namespace finepruning
