// Which register tile and block size a convolution gets: the ones that the cost model finds fastest.
#include <algorithm>

#include "cost_model.hpp"
#include "division.hpp"
#include "packed_conv.hpp"

namespace finepruning {
namespace {

constexpr int64_t kMaxBlockBytes = 65536LL * kOffsetUnit;
// Segments are what threads share of one tile; a shorter one would hold few rows of equal length.
constexpr int64_t kSegmentRows = 32, kMaxSegments = 64;

}  // namespace

PackedConv::Split PackedConv::split(int64_t items, int threads, double copy, int64_t most) {
  Split best{1, static_cast<double>(ceil_div(items, threads))};
  if (items >= 4 * threads) return best;
  for (int64_t parts = 2; parts <= std::min<int64_t>(most, 4 * threads); ++parts) {
    const double turns = static_cast<double>(ceil_div(items * parts, threads));
    const double time = turns * (copy + (1.0 - copy) / static_cast<double>(parts));
    if (time < best.time * 0.97) best = {parts, time};
  }
  return best;
}

int64_t PackedConv::segments_wanted() const {
  return std::clamp<int64_t>(group_outputs / kSegmentRows, 1, kMaxSegments);
}

double PackedConv::packing_cycles(int tile_columns, int unit_rows, int unit_columns, double map_bytes) const {
  const CycleCosts& costs = *isa->costs;
  // Maps that the second-level cache does not hold come from further away, with every tile anew.
  const int from = distance(map_bytes);
  const double far = costs.packed_vector[from];
  double vector = 2.0, run = 0.0;
  switch (mapping) {
    case Mapping::kLanes:
      vector = costs.lanes_vector + far + (shape.stride_w > 1 ? costs.strided_vector : 0.0);
      run = costs.packed_run[from];
      break;
    case Mapping::kRows:
      // Tiles side by side read the same lines soon after each other.
      vector = 3.0 + static_cast<double>(std::min<int64_t>(shape.stride_w, 4)) +
               0.1 * far / std::min(tile_columns, 4);
      run = 0.5 * costs.packed_run[from];
      break;
    case Mapping::kFlat: {
      run = 0.5 * costs.packed_run[from];
      const bool same = shape.stride_h == 1 && shape.stride_w == 1 && shape.out_height() == shape.height &&
                        shape.out_width() == shape.width &&
                        2 * std::max(shape.pad_h, shape.pad_w) < kFlatReach;
      if (same) {
        vector = (shape.pad_h == 0 && shape.pad_w == 0 ? 3.0 : 4.0) + far / std::min(tile_columns, 4);
        break;
      }
      // Row after row: each begins somewhere in a vector.
      const double row = static_cast<double>(std::min<int64_t>(shape.out_width(), lanes()));
      vector = (shape.stride_w <= 2 && shape.out_width() <= lanes() ? 6.0 : 25.0) * lanes() / row + far;
      break;
    }
    case Mapping::kMatrix:
      break;
  }
  return static_cast<double>(units_a_group_ * unit_rows) * (unit_columns * vector + run);
}

PackedConv::Layout PackedConv::best_layout(const CsrView& csr, const Choice& wanted) const {
  const int64_t oh = out_height(), ow = out_width();
  const int64_t reach_y = shape.dilation_h * (shape.kernel_h - 1) / shape.stride_h;
  const int64_t reach_x = shape.dilation_w * (shape.kernel_w - 1) / shape.stride_w;
  const double rows = static_cast<double>(group_outputs);
  const double row_nonzeros = static_cast<double>(csr.nonzeros) / static_cast<double>(shape.out_channels);
  const Bands bands = out_bands();
  Layout best{0, 0, 0, 0, 0, nullptr, 0, 0, 0};
  auto consider = [&](const TileEntry& tile, int tile_h, int tile_w) {
    Layout l{tile_h, tile_w, tile_h, tile_w, 1, tile.run, 0, 0, 0};
    if (mapping == Mapping::kLanes || mapping == Mapping::kRows)
      l.unit_rows = static_cast<int>(tile_h + reach_y);
    if (mapping == Mapping::kLanes) l.unit_columns = static_cast<int>(tile_w + reach_x);
    double tiles = static_cast<double>((bands.count() - 1) * tiles_of(bands.rows_of(0), tile_h, tile_w) +
                                       tiles_of(bands.rows_of(bands.count() - 1), tile_h, tile_w));
    if (mapping == Mapping::kMatrix) tiles = 1.0 / (tile_h * tile_w);  // of a block of rows
    if (wanted.rows > 0 && (wanted.rows != tile_h || wanted.columns != tile_w)) return;
    if (pooled && (tile_h % 2 != 0 || (mapping == Mapping::kLanes && tile_w % 2 != 0))) return;
    const int64_t vectors = static_cast<int64_t>(l.unit_rows) * l.unit_columns;
    const int64_t unit_bytes = vectors * vector_bytes();
    if (unit_bytes > kMaxBlockBytes) return;
    const double images = mapping == Mapping::kLanes ? lanes() : 1;
    const double map_bytes = static_cast<double>(shape.channels * shape.height * shape.width) * 4.0 * images;
    const double out_bytes =
        static_cast<double>(shape.out_channels * oh * ow) * 4.0 * images / (pooled ? 4.0 : 1.0);
    for (int64_t budget :
         {kFirstLevelBytes, 2 * kFirstLevelBytes, 5 * kFirstLevelBytes, 14 * kFirstLevelBytes}) {
      const int64_t most = std::max<int64_t>(units_a_group_, 1);
      l.block_units = static_cast<int>(std::clamp<int64_t>(budget / unit_bytes, 1, most));
      if (wanted.block_units > 0) l.block_units = static_cast<int>(std::min(wanted.block_units, most));
      // Blocks of equal size: a short last one would cost a pass over all sums for little.
      const int64_t count = ceil_div(most, l.block_units);
      l.block_units = static_cast<int>(ceil_div(most, count));
      if (l.block_units * unit_bytes > kMaxBlockBytes) continue;
      const TileWork work{tile_h * tile_w,
                          static_cast<double>(vector_bytes()),
                          rows,
                          row_nonzeros,
                          count,
                          l.block_units * unit_bytes,
                          packing_cycles(tile_w, l.unit_rows, l.unit_columns, map_bytes),
                          out_bytes};
      const TileCycles cycles = tile_cycles(work, *isa->costs);
      l.cost = tiles * static_cast<double>(shape.groups) * cycles.total;
      l.copy_share = cycles.packing / cycles.total;
      l.time = l.cost;
      if (threads_ > 1 && mapping != Mapping::kMatrix)
        l.time =
            cycles.total *
            split(static_cast<int64_t>(tiles) * shape.groups, threads_, l.copy_share, segments_wanted()).time;
      if (best.kernel == nullptr || l.time < best.time) best = l;
    }
  };
  for (int i = 0; i < isa->tile_count; ++i) {
    const TileEntry& tile = isa->tiles[i];
    switch (mapping) {
      case Mapping::kLanes:
        consider(tile, tile.rows, tile.columns);
        break;
      case Mapping::kRows:
        // Rows of a packed unit lie back to back, so a flat tile serves any rectangle of its size.
        if (tile.rows == 1)
          for (int w = 1; w <= tile.columns; ++w)
            if (tile.columns % w == 0) consider(tile, tile.columns / w, w);
        break;
      case Mapping::kFlat:
        if (tile.rows == 1) consider(tile, 1, tile.columns);
        break;
      case Mapping::kMatrix:
        if (tile.rows == 1 && tile.columns <= std::max<int64_t>(matrix_blocks_, 1))
          consider(tile, tile.columns, 1);
        break;
    }
  }
  return best;
}

}  // namespace finepruning
