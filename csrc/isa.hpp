// The table of kernels: one implementation per instruction set, chosen once at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "cycle_costs.hpp"

namespace finepruning {

// Floats of a cache line, to which buffers are aligned.
inline constexpr int kLineFloats = 16;
// Of a vector, at most.
inline constexpr int kMaxLanes = 16;
// Packed offsets count units of 8 bytes: x86 addressing scales an index by 8 for free.
inline constexpr int kOffsetUnit = 8;
// Offsets and values are read so many at a time, beyond the last nonzero of a row too.
inline constexpr int kReadAhead = 8;

// Rows and columns of a kernel, dilation included, beyond which flat maps are packed row by row.
inline constexpr int kFlatReach = 16;

// How weights are stored; all arithmetic is in float32.
enum class ValueType : int { kFloat32, kBfloat16, kFloat16 };
inline constexpr int kValueTypes = 3;
inline int value_bytes(ValueType type) { return type == ValueType::kFloat32 ? 4 : 2; }

// How a planar map is cut into horizontal bands, each of which mostly one thread reads and writes. Bands lie
// apart, as [channel][pitch], and their planes begin with a cache line. One band is a whole map:
// [channel][height][width].
struct Bands {
  int64_t height, width;
  int64_t rows;  // of a band; the last one may have fewer

  int64_t count() const { return (height + rows - 1) / rows; }
  // Floats from one channel to the next.
  int64_t pitch() const {
    return rows >= height ? height * width : (rows * width + kLineFloats - 1) / kLineFloats * kLineFloats;
  }
  int64_t rows_of(int64_t band) const { return rows < height - band * rows ? rows : height - band * rows; }
};

// One block of input channels times a range of output channels, for one tile of output positions.
struct TileArgs {
  const char* input;         // packed block, aligned to vectors
  const uint16_t* offset;    // per nonzero: position in `input` in units of 8 bytes; kReadAhead more follow
  const float* value;        // per nonzero; kReadAhead more follow
  const uint32_t* order;     // [rows] output channel of every row, relative to `output` and `partial`
  const uint32_t* count;     // [rows] nonzeros of every row; the rows' nonzeros follow each other
  const float* bias;         // [channel] or null; used by the first block
  float* partial;            // [channel][tile vectors][lanes]: sums carried from block to block
  const float* residual;     // added by the last block, laid out as `output`; or null
  float* output;             // written by the last block
  ptrdiff_t output_channel;  // floats between output channels
  ptrdiff_t output_row;      // floats between rows of the tile
  int rows;
  int input_row;                      // bytes between rows of the tile in `input`
  int columns;                        // vectors in a row of the tile
  int rows_used, columns_used, tail;  // what lies inside the map; lanes used of the last column
  float low, high;                    // the result is clamped to [low, high]
  bool first, last;
  bool fetch;  // lines of the result some rows ahead: it lies beyond the second-level cache
  // Whole tiles are written past the caches, which would not keep the result: their rows are whole lines, and
  // nothing is added to them.
  bool stream;
  // The last block writes the maxima of 2x2 vectors, or of 2x2 lanes where lanes are neighbours of a row;
  // `output` and its strides count those.
  bool pooled;
};
using TileKernel = void (*)(const TileArgs&);

struct TileEntry {
  int rows, columns;  // register tile in vectors; rows == 1 also serves rows that lie back to back
  TileKernel run;
};

// The input is cut into units, each a contiguous plane of vectors that all its taps read with one register
// tile; see Mapping in packed_conv.hpp for what a unit is.
struct Unit {
  int32_t channel;  // inside the group
  int32_t dy, dx;   // input offset of the plane's first element relative to stride * output position
};

// One block of units to be packed for one tile.
struct GatherArgs {
  const float* source;  // first channel of the image (or block of images in lanes) and group
  // Of planar sources: rows of a band, floats from channel to channel and from band to band.
  int64_t band_rows, pitch, band;
  float* out;  // aligned to vectors, [units][unit_rows][unit_columns][lanes]
  const Unit* units;
  int64_t count;
  int unit_rows, unit_columns;
  int64_t y, x, end;  // first output position of the tile; under kFlat x and end count the flattened map
  int64_t height, width, out_height, out_width;
  int64_t stride_h, stride_w, pad_h, pad_w;
};
using GatherKernel = void (*)(const GatherArgs&);

struct PoolArgs {
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool maximum, count_include_pad;
  int64_t divisor_override;  // 0: none
  // Of a planar source, as in GatherArgs.
  int64_t band_rows, band;
  int64_t first, rows;  // of the output, that are wanted
};

// Rows that `pool` combines before it looks at their columns.
inline constexpr int64_t kPoolRows = 8;
// Floats of each in scratch: the row between margins, so that no window and no vector of windows is cut.
inline int64_t pool_row_floats(const PoolArgs& p) {
  const int64_t windows =
      (p.out_width + kMaxLanes) * p.stride_w + p.dilation_w * (p.kernel_w - 1) + 2 * kMaxLanes;
  return windows > p.width + p.pad_w ? windows : p.width + p.pad_w;
}

enum class Activation : int { kNone, kRelu, kRelu6, kHardswish, kHardsigmoid, kSilu, kSigmoid, kGelu };
enum class Binary : int { kAdd, kMul };

// y[r] = clamp(bias[r] + sum value * x[column] + residual[r]) for rows [0, rows)
using GatherRows = void (*)(const float* x, const uint16_t* column, const void* value, const uint32_t* rowptr,
                            const float* bias, const float* residual, float* y, int64_t rows, float low,
                            float high);
// n values of 16 bits as float32
using Expand = void (*)(const uint16_t* value, float* out, int64_t n);

// How GatherRows reads x: a load for every column, or gather instructions, which some processors are better
// at.
enum class GatherWay : int { kLoads, kInstructions };
inline constexpr int kGatherWays = 2;

struct Isa {
  const char* name;
  int lanes;  // floats of a vector: images, or neighbouring output positions, side by side
  const TileEntry* tiles;
  int tile_count;
  const CycleCosts* costs;  // what the choice of a tile rests on
  GatherKernel gather_rows_block, gather_flat_block, gather_lanes_block;
  GatherRows gather_rows[kGatherWays][kValueTypes];  // none for instructions that it lacks
  Expand expand[kValueTypes];                        // none for float32
  // Some rows of one plane of a map, to `y`; `scratch` holds kPoolRows * pool_row_floats(args).
  void (*pool)(const float* x, float* y, const PoolArgs& args, float* scratch);
  void (*pool_lanes)(const float* x, float* y, const PoolArgs& args);
  // y = activation(a op b) over n floats; b may be null (y = activation(a)).
  void (*elementwise)(const float* a, const float* b, float* y, int64_t n, Binary op, Activation activation);
  // y[c][i] = activation(a[c][i] op b[c]): planar (one float a channel) or a vector a channel.
  void (*broadcast)(const float* a, const float* b, float* y, int64_t channels, int64_t n, int lanes,
                    Binary op, Activation activation);
  // n columns of [images][pitch] -> [n][lanes], lanes without an image zero; and the reverse.
  void (*to_lanes)(const float* x, float* y, int64_t images, int64_t pitch, int64_t n);
  void (*from_lanes)(const float* x, float* y, int64_t images, int64_t pitch, int64_t n);
  double (*fma_loop)(int64_t iterations);             // returns MACs done
  double (*read_loop)(const float* data, int64_t n);  // sums, so that it is not dropped
};

// What a vector holds: images side by side (or rows of a matrix), or neighbours of one map.
enum class Across { kImages, kMap };
// FINEPRUNING_ISA names kernels that are unknown or that this machine lacks.
struct IsaUnavailable : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};
// The fastest kernels of this machine for such vectors, or those that FINEPRUNING_ISA names.
// Throws IsaUnavailable.
const Isa& select_isa(Across across);
// The faster on this machine of those that `isa` has.
GatherWay select_gather(const Isa& isa);
// Of both: a name of theirs, or "avx512-split" for "avx512" along maps and "avx512vl" across images.
const char* isa_name();
// avx512vl: the instructions of AVX-512 on vectors of half the width.
inline constexpr const char* kIsaNames[] = {"avx512", "avx512vl", "avx2", "portable"};
// Null when this build or this machine lacks it, and for other names.
const Isa* find_isa(const char* name);

}  // namespace finepruning
