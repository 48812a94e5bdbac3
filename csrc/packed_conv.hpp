// Weights of one convolution (or fully connected layer over many images), repacked for the tile kernels.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "isa.hpp"
#include "pages.hpp"

namespace finepruning {

struct ConvShape {
  int64_t channels, height, width, out_channels;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;

  int64_t out_height() const { return (height + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) / stride_h + 1; }
  int64_t out_width() const { return (width + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) / stride_w + 1; }
};

// What the lanes of a vector are: 16 with AVX-512, 8 with AVX2, 4 elsewhere.
enum class Mapping : int {
  kLanes,  // images; a tile is a rectangle of output positions
  kRows,   // neighbours in an output row; a tile is a rectangle of such vectors
  kFlat,   // neighbours of the flattened output map; a tile is a run of vectors
  kMatrix  // rows of a matrix; a tile is some such blocks (fully connected layers)
};

// Where the maps of a planar convolution lie, see Bands. Those of the other mappings lie whole.
struct MapBands {
  int64_t source_rows = 0;  // of a band; 0: whole
  bool result = false;      // in the bands of band_rows() for the threads that share an image
};

// Rows of a band of a map that so many threads share: as many bands as threads, or fewer where planes of
// bands would be too short for vectors. The map's height: one band.
int64_t band_rows(int64_t height, int64_t width, int threads);

// Borrowed CSR arrays; see finepruning/sparse/csr.py.
struct CsrView {
  const void* value;  // of `type`
  ValueType type;
  const int32_t* column;
  const int32_t* rowptr;
  int64_t rows, nonzeros;
};

// A unit of packed input is (channel, phase) under kLanes, (channel, phase, kernel column) under kRows,
// (channel, tap) under kFlat, a column under kMatrix. As many units as the first-level cache holds form a
// block.
class PackedConv {
 public:
  // A register tile and block size to use; zeros leave the choice to the cost model.
  struct Choice {
    int rows = 0, columns = 0;
    int64_t block_units = 0;
  };
  // matrix_blocks: vectors of rows that may share one reading of the weights under kMatrix.
  // pooled: the output is max-pooled over 2x2 windows, under kLanes and kRows.
  // threads: that share one image (a vector of images under kLanes); the tile is chosen so that they can. Any
  // number may run it. Throws std::invalid_argument when the shape cannot be expressed or the CSR does not
  // fit it.
  PackedConv(const ConvShape& shape, const CsrView& csr, Mapping mapping, const Isa& isa,
             int64_t matrix_blocks, bool pooled, int threads, const MapBands& bands, const Choice& wanted);
  // For images one by one: kRows or kFlat, whichever the cost model prefers. pool: kRows may pool its output;
  // the result's `pooled` says whether it does.
  static std::shared_ptr<PackedConv> planar(const ConvShape& shape, const CsrView& csr, const Isa& isa,
                                            bool pool, int threads, const MapBands& bands);
  // `cost` of what planar(), or the constructor with kLanes, would make, without making it.
  static double modelled(const ConvShape& shape, const CsrView& csr, bool planar, const Isa& isa);

  // One tile of an image and group, and where it lies in the output: in which of its bands, from which row
  // and column of it on (under kFlat from which position on). Under kLanes and kMatrix all is one band.
  struct Tile {
    int64_t group, band, y, x;
  };
  Tile tile(int64_t item) const;
  // Of an image: band by band, group by group.
  int64_t tiles() const {
    return shape.groups * ((out_bands().count() - 1) * band_tiles_ + last_band_tiles_);
  }
  // How threads share `items` tiles: each is cut into `parts` of its output channels, of at most `most`, and
  // the last thread ends after `time` tiles. Every part packs the input anew, `copy` of a tile's time.
  struct Split {
    int64_t parts;
    double time;
  };
  static Split split(int64_t items, int threads, double copy, int64_t most);
  // Of the output map; where it is pooled, without an odd last row or column.
  int64_t out_height() const { return pooled ? shape.out_height() / 2 * 2 : shape.out_height(); }
  int64_t out_width() const { return pooled ? shape.out_width() / 2 * 2 : shape.out_width(); }
  // Of the input, of the output before it is pooled, and of what is stored.
  Bands source_bands() const { return {shape.height, shape.width, source_band_rows_}; }
  Bands out_bands() const { return {out_height(), out_width(), out_band_rows_}; }
  Bands result_bands() const {
    if (!pooled) return out_bands();
    return {out_height() / 2, out_width() / 2, out_band_rows_ / 2};
  }
  int64_t bytes() const;
  // Segments [first, last) of part `part` of `parts` of a group's output channels.
  void part_segments(int64_t part, int64_t parts, int64_t* first, int64_t* last) const {
    *first = part * segment_count() / parts;
    *last = (part + 1) * segment_count() / parts;
  }
  // Rows of a block and a range of segments of a group, as the tile kernel takes them.
  struct Rows {
    const uint32_t* order;
    const uint32_t* count;
    const uint16_t* offset;
    const float* value;    // or null, and
    const uint16_t* half;  // values of 16 bits
    int rows;
  };
  Rows rows(int64_t group, int64_t block, int64_t first_segment, int64_t last_segment) const;

  ConvShape shape;
  Mapping mapping;
  const Isa* isa;
  bool pooled = false;
  TileKernel kernel = nullptr;
  int tile_rows = 0, tile_columns = 0;  // of a tile, in vectors
  int unit_rows = 0, unit_columns = 0;  // vectors
  std::vector<Unit> units;
  std::vector<int32_t> blocks;  // first unit of each block, and the end
  int64_t group_channels = 0, group_outputs = 0;
  PageVector<uint16_t> offset;
  ValueType value_type = ValueType::kFloat32;
  PageVector<float> value;    // under kFloat32, else
  PageVector<uint16_t> half;  // expanded a few rows at a time, just before they are used
  // A group's output channels are cut into segments of about equal work, which threads can share. Inside a
  // segment and block, rows stand by falling number of nonzeros.
  std::vector<uint32_t> order;  // output channel inside the group, segment by segment
  std::vector<uint32_t> count;  // nonzeros of that row in that block
  struct Segment {
    uint32_t row;      // into order and count
    uint32_t nonzero;  // into offset and value
  };
  std::vector<Segment> segments;      // [(group * blocks + block) * segments + segment], and the end
  int64_t nonzeros = 0, longest = 0;  // of all rows; of one row in one block
  double cost = 0;                    // modelled cycles for one image (a vector of images under kLanes)
  double copy_share = 0;              // of them, for packing input

  int vector_bytes() const { return isa->lanes * 4; }
  // Whether the output map, of an image or of a vector of them, is worth fetching before it is written.
  bool fetches_result() const { return fetches_result_; }
  int tile_vectors() const { return tile_rows * tile_columns; }
  int lanes() const { return isa->lanes; }
  int unit_bytes() const { return unit_rows * unit_columns * vector_bytes(); }
  int64_t block_count() const { return static_cast<int64_t>(blocks.size()) - 1; }
  int64_t segment_count() const { return segment_count_; }
  int block_bytes() const { return block_units_ * unit_bytes(); }

 private:
  struct Layout {
    int rows, columns, unit_rows, unit_columns, block_units;
    TileKernel kernel;
    double cost, copy_share;
    double time;  // of the last of `threads_`, in cycles
  };
  // Decides the tile; pack() must follow.
  PackedConv(const ConvShape& shape, Mapping mapping, const Isa& isa, bool pooled, int threads,
             const MapBands& bands)
      : shape(shape), mapping(mapping), isa(&isa), pooled(pooled), threads_(threads), bands_(bands) {}
  int64_t tiles_of(int64_t rows, int tile_h, int tile_w) const;
  void lay_out(const CsrView& csr, const Choice& wanted);
  void make_units(const CsrView& csr);
  Layout best_layout(const CsrView& csr, const Choice& wanted) const;
  // Of a tile whose units have so many vectors.
  double packing_cycles(int tile_columns, int unit_rows, int unit_columns, double map_bytes) const;
  void pack(const CsrView& csr);
  int64_t segments_wanted() const;
  void assign_segments(const int32_t* rowptr, std::vector<std::vector<uint32_t>>* rows_of) const;

  int threads_;
  MapBands bands_;
  int64_t source_band_rows_ = 0, out_band_rows_ = 0;
  int64_t tiles_x_ = 1, band_tiles_ = 1, last_band_tiles_ = 1;  // of a group
  double time_ = 0;
  int64_t matrix_blocks_ = 1;
  int64_t units_a_group_ = 0, segment_count_ = 1;
  int block_units_ = 0;
  bool fetches_result_ = false;
  std::vector<int32_t> unit_of_;  // [channel][tap] -> unit, or -1
};

}  // namespace finepruning
