// Weights of one convolution (or fully connected layer over many images), repacked for the tile kernels.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "isa.hpp"

namespace finepruning {

struct ConvShape {
  int64_t channels, height, width, out_channels;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;

  int64_t out_height() const { return (height + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) / stride_h + 1; }
  int64_t out_width() const { return (width + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) / stride_w + 1; }
};

// What the 16 lanes of a vector are.
enum class Mapping : int {
  kLanes,  // 16 images; a tile is a rectangle of output positions
  kRows,   // 16 neighbours in an output row; a tile is a rectangle of such vectors
  kFlat,   // 16 neighbours of the flattened output map; a tile is a run of vectors
  kMatrix  // 16 rows of a matrix; a tile is some such blocks (fully connected layers)
};

// Borrowed CSR arrays; see finepruning/sparse/csr.py.
struct CsrView {
  const float* value;
  const int32_t* column;
  const int32_t* rowptr;
  int64_t rows, nonzeros;
};

// The input is cut into units, each a contiguous plane of vectors that all its taps read with one register
// tile: (channel, phase) under kLanes, (channel, phase, kernel column) under kRows, (channel, tap) under
// kFlat, a column under kMatrix. As many units as the first-level cache holds form a block.
struct Unit {
  int32_t channel;  // inside the group
  int32_t dy, dx;   // input offset of the plane's first element relative to stride * output position
};

class PackedConv {
 public:
  // matrix_blocks: blocks of 16 rows that share one reading of the weights under kMatrix (at most 4 do).
  // Throws std::invalid_argument when the shape cannot be expressed or the CSR does not fit it.
  PackedConv(const ConvShape& shape, const CsrView& csr, Mapping mapping, const Isa& isa,
             int64_t matrix_blocks = 1);
  // For images one by one: kRows or kFlat, whichever the cost model prefers.
  static std::shared_ptr<PackedConv> planar(const ConvShape& shape, const CsrView& csr, const Isa& isa);

  int64_t tiles() const { return tiles_y * tiles_x; }
  int64_t bytes() const;
  // Rows [k0, k1) of part `part` of `parts` of a group's channels, cut so that nonzeros are equal.
  void part_rows(int64_t group, int64_t part, int64_t parts, int64_t* k0, int64_t* k1) const;

  ConvShape shape;
  Mapping mapping;
  const Isa* isa;
  TileKernel kernel = nullptr;
  int tile_rows = 0, tile_columns = 0;  // of a tile, in vectors
  int64_t tiles_y = 0, tiles_x = 0;     // under kMatrix: 1 and unused
  int unit_rows = 0, unit_columns = 0;  // vectors
  std::vector<Unit> units;
  std::vector<int32_t> blocks;  // first unit of each block, and the end
  int64_t group_channels = 0, group_outputs = 0;
  std::vector<uint16_t> offset;
  std::vector<float> value;
  std::vector<uint32_t> rowptr;   // [(group * blocks + block) * group_outputs + channel]
  std::vector<int64_t> row_work;  // [out_channels + 1]: running count of nonzeros (plus 1 a row)
  int64_t nonzeros = 0;
  double cost = 0;        // modelled cycles for one image (16 under kLanes)
  double copy_share = 0;  // of them, for packing input

  int tile_vectors() const { return tile_rows * tile_columns; }
  int unit_bytes() const { return unit_rows * unit_columns * kVectorBytes; }
  int64_t block_count() const { return static_cast<int64_t>(blocks.size()) - 1; }
  int block_bytes() const { return block_units_ * unit_bytes(); }

 private:
  struct Layout {
    int rows, columns, unit_rows, unit_columns, block_units;
    TileKernel kernel;
    double cost, copy_share;
  };
  // Decides the tile; pack() must follow.
  PackedConv(const ConvShape& shape, Mapping mapping, const Isa& isa)
      : shape(shape), mapping(mapping), isa(&isa) {}
  void lay_out(const CsrView& csr);
  void make_units(const CsrView& csr);
  Layout best_layout(const CsrView& csr) const;
  void pack(const CsrView& csr);

  int64_t matrix_blocks_ = 1;
  int64_t units_a_group_ = 0;
  int block_units_ = 0;
  std::vector<int32_t> unit_of_;  // [channel][tap] -> unit, or -1
};

}  // namespace finepruning
