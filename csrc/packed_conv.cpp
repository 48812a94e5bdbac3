#include "packed_conv.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace finepruning {
namespace {

constexpr int kCacheBytes = 40 * 1024;  // of 48 KiB first-level cache, for one packed block
constexpr int64_t kMaxBlockBytes = 65536LL * kOffsetUnit;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void require(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(message);
}

void check(const ConvShape& s, const CsrView& csr) {
  for (int64_t v : {s.channels, s.height, s.width, s.out_channels, s.kernel_h, s.kernel_w, s.stride_h,
                    s.stride_w, s.dilation_h, s.dilation_w, s.groups})
    require(v >= 1 && v <= (1 << 28), "convolution sizes must lie in [1, 2^28]");
  require(s.pad_h >= 0 && s.pad_w >= 0 && s.pad_h <= (1 << 28) && s.pad_w <= (1 << 28),
          "padding must not be negative");
  require(s.channels % s.groups == 0 && s.out_channels % s.groups == 0, "groups must divide the channels");
  require(s.height + 2 * s.pad_h >= s.dilation_h * (s.kernel_h - 1) + 1 &&
              s.width + 2 * s.pad_w >= s.dilation_w * (s.kernel_w - 1) + 1,
          "the kernel must fit into the padded input");
  require(csr.rows == s.out_channels, "CSR must have one row per output channel");
  const int64_t columns = s.channels / s.groups * s.kernel_h * s.kernel_w;
  require(csr.rowptr[0] == 0 && csr.rowptr[csr.rows] == csr.nonzeros, "rowptr must run from 0 to nnz");
  for (int64_t r = 0; r < csr.rows; ++r)
    require(csr.rowptr[r] <= csr.rowptr[r + 1], "rowptr must not descend");
  for (int64_t e = 0; e < csr.nonzeros; ++e)
    require(csr.column[e] >= 0 && csr.column[e] < columns, "a column lies outside the weight");
}

}  // namespace

PackedConv::PackedConv(const ConvShape& conv, const CsrView& csr, Mapping map, const Isa& table,
                       int64_t matrix_blocks)
    : PackedConv(conv, map, table) {
  matrix_blocks_ = matrix_blocks;
  check(shape, csr);
  lay_out(csr);
  pack(csr);
}

std::shared_ptr<PackedConv> PackedConv::planar(const ConvShape& conv, const CsrView& csr, const Isa& table) {
  check(conv, csr);
  std::shared_ptr<PackedConv> rows(new PackedConv(conv, Mapping::kRows, table));
  std::shared_ptr<PackedConv> flat(new PackedConv(conv, Mapping::kFlat, table));
  rows->lay_out(csr);
  flat->lay_out(csr);
  auto& best = rows->cost < flat->cost ? rows : flat;
  best->pack(csr);
  return best;
}

void PackedConv::lay_out(const CsrView& csr) {
  group_channels = shape.channels / shape.groups;
  group_outputs = shape.out_channels / shape.groups;
  nonzeros = csr.nonzeros;
  make_units(csr);
  const Layout layout = best_layout(csr);
  require(layout.kernel != nullptr, "no register tile serves this convolution");
  kernel = layout.kernel;
  tile_rows = layout.rows;
  tile_columns = layout.columns;
  unit_rows = layout.unit_rows;
  unit_columns = layout.unit_columns;
  block_units_ = layout.block_units;
  cost = layout.cost;
  copy_share = layout.copy_share;
  const int64_t oh = shape.out_height(), ow = shape.out_width();
  switch (mapping) {
    case Mapping::kLanes:
      tiles_y = ceil_div(oh, tile_rows);
      tiles_x = ceil_div(ow, tile_columns);
      break;
    case Mapping::kRows:
      tiles_y = ceil_div(oh, tile_rows);
      tiles_x = ceil_div(ow, static_cast<int64_t>(tile_columns) * kLanes);
      break;
    case Mapping::kFlat:
      tiles_y = 1;
      tiles_x = ceil_div(oh * ow, static_cast<int64_t>(tile_columns) * kLanes);
      break;
    case Mapping::kMatrix:
      tiles_y = tiles_x = 1;
      break;
  }
  for (int64_t u = 0; u < units_a_group_; u += block_units_) blocks.push_back(static_cast<int32_t>(u));
  if (blocks.empty()) blocks.push_back(0);
  blocks.push_back(static_cast<int32_t>(units_a_group_));
}

int64_t PackedConv::bytes() const {
  return static_cast<int64_t>(offset.size() * sizeof offset[0] + value.size() * sizeof value[0] +
                              rowptr.size() * sizeof rowptr[0] + row_work.size() * sizeof row_work[0] +
                              units.size() * sizeof units[0]);
}

void PackedConv::make_units(const CsrView& csr) {
  const int64_t taps = shape.kernel_h * shape.kernel_w;
  const int64_t columns = group_channels * taps;
  // A matrix keeps every column, so that its input can be read in place.
  std::vector<char> used(static_cast<size_t>(columns), mapping == Mapping::kMatrix);
  for (int64_t e = 0; e < csr.nonzeros; ++e) used[csr.column[e]] = 1;
  unit_of_.assign(static_cast<size_t>(columns), -1);
  const int64_t sh = shape.stride_h, sw = shape.stride_w;
  // Two taps of a channel share a unit when their (dy, dx) agree.
  std::vector<Unit> of_channel;
  for (int64_t c = 0; c < group_channels; ++c) {
    const size_t first = units.size();
    for (int64_t kx = 0; kx < shape.kernel_w; ++kx)
      for (int64_t ky = 0; ky < shape.kernel_h; ++ky) {
        const int64_t column = c * taps + ky * shape.kernel_w + kx;
        if (!used[column]) continue;
        const int64_t y = ky * shape.dilation_h, x = kx * shape.dilation_w;
        Unit unit{static_cast<int32_t>(c), 0, 0};
        if (mapping == Mapping::kLanes) {
          unit.dy = static_cast<int32_t>(y % sh);
          unit.dx = static_cast<int32_t>(x % sw);
        } else if (mapping == Mapping::kRows) {
          unit.dy = static_cast<int32_t>(y % sh);
          unit.dx = static_cast<int32_t>(x);
        } else {
          unit.dy = static_cast<int32_t>(y);
          unit.dx = static_cast<int32_t>(x);
        }
        size_t at = first;
        while (at < units.size() && (units[at].dy != unit.dy || units[at].dx != unit.dx)) ++at;
        if (at == units.size()) units.push_back(unit);
        unit_of_[column] = static_cast<int32_t>(at);
      }
  }
  units_a_group_ = static_cast<int64_t>(units.size());
}

PackedConv::Layout PackedConv::best_layout(const CsrView& csr) const {
  const int64_t oh = shape.out_height(), ow = shape.out_width();
  const int64_t reach_y = shape.dilation_h * (shape.kernel_h - 1) / shape.stride_h;
  const int64_t reach_x = shape.dilation_w * (shape.kernel_w - 1) / shape.stride_w;
  const double rows = static_cast<double>(group_outputs);
  const double row_nonzeros = static_cast<double>(csr.nonzeros) / static_cast<double>(shape.out_channels);
  const double parts = static_cast<double>(kLanes) / isa->vector_floats;
  Layout best{0, 0, 0, 0, 0, nullptr, 0, 0};
  auto consider = [&](const TileEntry& tile, int tile_h, int tile_w) {
    Layout l{tile_h, tile_w, tile_h, tile_w, 1, tile.run, 0, 0};
    double tiles = 0;
    switch (mapping) {
      case Mapping::kLanes:
        l.unit_rows = static_cast<int>(tile_h + reach_y);
        l.unit_columns = static_cast<int>(tile_w + reach_x);
        tiles = static_cast<double>(ceil_div(oh, tile_h) * ceil_div(ow, tile_w));
        break;
      case Mapping::kRows:
        l.unit_rows = static_cast<int>(tile_h + reach_y);
        tiles = static_cast<double>(ceil_div(oh, tile_h) * ceil_div(ow, tile_w * kLanes));
        break;
      case Mapping::kFlat:
        tiles = static_cast<double>(ceil_div(oh * ow, tile_w * kLanes));
        break;
      case Mapping::kMatrix:
        tiles = 1.0 / (tile_h * tile_w);  // of a block of rows
        break;
    }
    const int64_t vectors = static_cast<int64_t>(l.unit_rows) * l.unit_columns;
    const int64_t unit_bytes = vectors * kVectorBytes;
    if (unit_bytes > kMaxBlockBytes) return;
    const int p = tile_h * tile_w;
    for (int64_t budget : {int64_t{kCacheBytes}, int64_t{4} * kCacheBytes}) {
      l.block_units =
          static_cast<int>(std::clamp<int64_t>(budget / unit_bytes, 1, std::max<int64_t>(units_a_group_, 1)));
      const double count = static_cast<double>(std::max<int64_t>(1, ceil_div(units_a_group_, l.block_units)));
      // Cycles, estimated and not calibrated: an FMA fed by the first-level cache takes half a cycle, by the
      // second about one and a half; carrying sums from block to block costs a load and a store each.
      const double fed = l.block_units * unit_bytes <= kCacheBytes + 4096 ? 0.5 : 1.3;
      const double chains = p >= 8 ? p : p >= 4 ? 2 * p : p >= 2 ? 4 * p : 8;
      const double step = std::max(fed * p * parts, p * 4.0 / chains) + 1.0 * parts;
      const double carry = count > 1 ? 2.0 * p * parts * count : 0.0;
      const double finish = 2.0 * p * parts + 10.0 + 6.0 * count;
      const double copy = 2.0 * parts * static_cast<double>(units_a_group_ * vectors);
      const double work = rows * (row_nonzeros * step + carry + finish) + copy;
      l.cost = tiles * static_cast<double>(shape.groups) * work;
      l.copy_share = copy / work;
      if (best.kernel == nullptr || l.cost < best.cost) best = l;
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
        if (tile.rows == 1 && tile.columns <= std::clamp<int64_t>(matrix_blocks_, 1, 4))
          consider(tile, tile.columns, 1);
        break;
    }
  }
  return best;
}

void PackedConv::pack(const CsrView& csr) {
  const int64_t taps = shape.kernel_h * shape.kernel_w;
  const int64_t count = block_count();
  std::vector<uint16_t> place(unit_of_.size(), 0);
  std::vector<int32_t> block_of(unit_of_.size(), 0);
  for (size_t column = 0; column < unit_of_.size(); ++column) {
    if (unit_of_[column] < 0) continue;
    const int64_t unit = unit_of_[column];
    const int64_t tap = static_cast<int64_t>(column) % taps;
    const int64_t y = tap / shape.kernel_w * shape.dilation_h, x = tap % shape.kernel_w * shape.dilation_w;
    int64_t row = 0, col = 0;
    if (mapping == Mapping::kLanes || mapping == Mapping::kRows) row = y / shape.stride_h;
    if (mapping == Mapping::kLanes) col = x / shape.stride_w;
    block_of[column] = static_cast<int32_t>(unit / block_units_);
    const int64_t vectors = (unit % block_units_) * unit_rows * unit_columns + row * unit_columns + col;
    place[column] = static_cast<uint16_t>(vectors * (kVectorBytes / kOffsetUnit));
  }
  offset.resize(static_cast<size_t>(nonzeros));
  value.resize(static_cast<size_t>(nonzeros));
  rowptr.assign(static_cast<size_t>(shape.groups * count * group_outputs + 1), 0);
  row_work.assign(static_cast<size_t>(shape.out_channels + 1), 0);
  auto slot = [&](int64_t k, int64_t block) {
    return (k / group_outputs * count + block) * group_outputs + k % group_outputs;
  };
  for (int64_t k = 0; k < shape.out_channels; ++k) {
    row_work[k + 1] = row_work[k] + csr.rowptr[k + 1] - csr.rowptr[k] + 1;
    for (int64_t e = csr.rowptr[k]; e < csr.rowptr[k + 1]; ++e)
      ++rowptr[slot(k, block_of[csr.column[e]]) + 1];
  }
  for (size_t i = 1; i < rowptr.size(); ++i) rowptr[i] += rowptr[i - 1];
  std::vector<uint32_t> next(rowptr.begin(), rowptr.end() - 1);
  for (int64_t k = 0; k < shape.out_channels; ++k)
    for (int64_t e = csr.rowptr[k]; e < csr.rowptr[k + 1]; ++e) {
      const uint32_t at = next[slot(k, block_of[csr.column[e]])]++;
      offset[at] = place[csr.column[e]];
      value[at] = csr.value[e];
    }
  unit_of_ = {};
}

void PackedConv::part_rows(int64_t group, int64_t part, int64_t parts, int64_t* k0, int64_t* k1) const {
  const auto begin = row_work.begin() + group * group_outputs;
  const auto end = begin + group_outputs;
  auto cut = [&](int64_t i) -> int64_t {
    if (i == 0) return 0;
    if (i == parts) return group_outputs;
    return std::lower_bound(begin, end, *begin + (*end - *begin) * i / parts) - begin;
  };
  *k0 = cut(part);
  *k1 = cut(part + 1);
}

}  // namespace finepruning
