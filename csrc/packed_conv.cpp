#include "packed_conv.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "cost_model.hpp"
#include "division.hpp"

namespace finepruning {
namespace {

// Floats of a plane in a band, at least.
constexpr int64_t kLeastBandFloats = 64;

// One core's for an element of a map that a step of its own pools over 2x2 windows, measured in VGG-16 (.8 to
// 1.0; 2.6 where the map comes from beyond the caches).
constexpr double kPoolCycles = 1.0;

bool poolable(const ConvShape& s) { return s.out_height() >= 2 && s.out_width() >= 2; }

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

void check(const MapBands& bands, const ConvShape& s, Mapping mapping) {
  require(bands.source_rows >= 0 && bands.source_rows <= s.height, "bands must have rows of the map");
  require((bands.source_rows == 0 && !bands.result) || mapping == Mapping::kRows || mapping == Mapping::kFlat,
          "only planar maps lie in bands");
}

}  // namespace

int64_t band_rows(int64_t height, int64_t width, int threads) {
  for (int count = threads; count > 1; --count) {
    const int64_t rows = ceil_div(height, count);
    if (threads % count == 0 && rows < height && rows * width >= kLeastBandFloats) return rows;
  }
  return height;
}

PackedConv::PackedConv(const ConvShape& conv, const CsrView& csr, Mapping map, const Isa& table,
                       int64_t matrix_blocks, bool pool, int threads, const MapBands& bands,
                       const Choice& wanted)
    : PackedConv(conv, map, table, pool, threads, bands) {
  matrix_blocks_ = matrix_blocks;
  check(shape, csr);
  check(bands, shape, mapping);
  require(!pooled || mapping == Mapping::kLanes || mapping == Mapping::kRows,
          "only maps in lanes and in rows can be pooled");
  require(!pooled || poolable(shape), "only maps of 2x2 and more can be pooled");
  lay_out(csr, wanted);
  pack(csr);
}

std::shared_ptr<PackedConv> PackedConv::planar(const ConvShape& conv, const CsrView& csr, const Isa& table,
                                               bool pool, int threads, const MapBands& bands) {
  check(conv, csr);
  check(bands, conv, Mapping::kRows);
  const bool pools = pool && poolable(conv);
  const double outputs = static_cast<double>(conv.out_channels * conv.out_height() * conv.out_width());
  const double pooling = kPoolCycles * outputs / threads;  // by a step of its own
  std::shared_ptr<PackedConv> best;
  double least = std::numeric_limits<double>::infinity();
  const auto consider = [&](Mapping map, bool pooled) {
    std::shared_ptr<PackedConv> packed(new PackedConv(conv, map, table, pooled, threads, bands));
    packed->lay_out(csr, {});
    const double time = packed->time_ + (pools && !pooled ? pooling : 0.0);
    if (time >= least) return;
    least = time;
    best = packed;
  };
  if (pools) consider(Mapping::kRows, true);
  consider(Mapping::kFlat, false);
  consider(Mapping::kRows, false);
  best->pack(csr);
  return best;
}

double PackedConv::modelled(const ConvShape& conv, const CsrView& csr, bool planar, const Isa& table) {
  check(conv, csr);
  double least = std::numeric_limits<double>::infinity();
  for (Mapping map : {Mapping::kLanes, Mapping::kRows, Mapping::kFlat}) {
    if ((map == Mapping::kLanes) == planar) continue;
    PackedConv packed(conv, map, table, false, 1, {});
    packed.lay_out(csr, {});
    least = std::min(least, packed.cost);
  }
  return least;
}

void PackedConv::lay_out(const CsrView& csr, const Choice& wanted) {
  const int64_t stored = pooled ? 2 : 1;  // rows and columns of the output for one of what is stored
  source_band_rows_ = bands_.source_rows > 0 ? bands_.source_rows : shape.height;
  out_band_rows_ = bands_.result ? stored * band_rows(out_height() / stored, out_width() / stored, threads_)
                                 : out_height();
  group_channels = shape.channels / shape.groups;
  group_outputs = shape.out_channels / shape.groups;
  nonzeros = csr.nonzeros;
  make_units(csr);
  const Layout layout = best_layout(csr, wanted);
  require(layout.kernel != nullptr, "no such register tile serves this convolution");
  kernel = layout.kernel;
  tile_rows = layout.rows;
  tile_columns = layout.columns;
  unit_rows = layout.unit_rows;
  unit_columns = layout.unit_columns;
  block_units_ = layout.block_units;
  cost = layout.cost;
  time_ = layout.time;
  copy_share = layout.copy_share;
  const int64_t oh = out_height(), ow = out_width();
  const int64_t images = mapping == Mapping::kLanes || mapping == Mapping::kMatrix ? lanes() : 1;
  fetches_result_ = !pooled && shape.out_channels * oh * ow * images * 4 > kSecondLevelBytes;
  const Bands bands = out_bands();
  tiles_x_ = tiles_of(1, 1, tile_columns);
  band_tiles_ = tiles_of(bands.rows_of(0), tile_rows, tile_columns);
  last_band_tiles_ = tiles_of(bands.rows_of(bands.count() - 1), tile_rows, tile_columns);
  for (int64_t u = 0; u < units_a_group_; u += block_units_) blocks.push_back(static_cast<int32_t>(u));
  if (blocks.empty()) blocks.push_back(0);
  blocks.push_back(static_cast<int32_t>(units_a_group_));
}

// Tiles of so many rows of the output, for a group.
int64_t PackedConv::tiles_of(int64_t rows, int tile_h, int tile_w) const {
  const int64_t ow = out_width(), vectors = int64_t{tile_w} * lanes();
  switch (mapping) {
    case Mapping::kLanes:
      return ceil_div(rows, tile_h) * ceil_div(ow, tile_w);
    case Mapping::kRows:
      return ceil_div(rows, tile_h) * ceil_div(ow, vectors);
    case Mapping::kFlat:
      return ceil_div(rows * ow, vectors);
    case Mapping::kMatrix:
      break;
  }
  return 1;
}

PackedConv::Tile PackedConv::tile(int64_t item) const {
  const int64_t count = out_bands().count(), of_band = shape.groups * band_tiles_;
  const int64_t band = std::min(item / of_band, count - 1);
  item -= band * of_band;
  const int64_t of_group = band + 1 < count ? band_tiles_ : last_band_tiles_;
  const int64_t at = item % of_group;
  if (mapping == Mapping::kFlat) return {item / of_group, band, 0, at * tile_columns * lanes()};
  const int64_t step = mapping == Mapping::kRows ? int64_t{tile_columns} * lanes() : tile_columns;
  return {item / of_group, band, at / tiles_x_ * tile_rows, at % tiles_x_ * step};
}

int64_t PackedConv::bytes() const {
  return static_cast<int64_t>(offset.size() * sizeof offset[0] + value.size() * sizeof value[0] +
                              half.size() * sizeof half[0] + order.size() * sizeof order[0] +
                              count.size() * sizeof count[0] + segments.size() * sizeof segments[0] +
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

void PackedConv::pack(const CsrView& csr) {
  const int64_t taps = shape.kernel_h * shape.kernel_w;
  const int64_t blocks_a_group = block_count();
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
    place[column] = static_cast<uint16_t>(vectors * (vector_bytes() / kOffsetUnit));
  }
  segment_count_ = segments_wanted();
  const auto room = static_cast<size_t>(nonzeros + kReadAhead);
  offset.resize(room);
  value_type = csr.type;
  const auto* floats = static_cast<const float*>(csr.value);
  const auto* halves = static_cast<const uint16_t*>(csr.value);
  if (value_type == ValueType::kFloat32)
    value.resize(room);
  else
    half.resize(room);
  order.reserve(static_cast<size_t>(shape.out_channels * blocks_a_group));
  count.reserve(order.capacity());
  std::vector<std::vector<uint32_t>> rows_of(static_cast<size_t>(segment_count_));
  std::vector<uint32_t> found(static_cast<size_t>(blocks_a_group * group_outputs));  // nonzeros [block][row]
  std::vector<uint32_t> next(found.size());                                          // where they go
  uint32_t at = 0;
  for (int64_t group = 0; group < shape.groups; ++group) {
    const int32_t* rowptr = csr.rowptr + group * group_outputs;
    std::fill(found.begin(), found.end(), 0);
    for (int64_t k = 0; k < group_outputs; ++k)
      for (int64_t e = rowptr[k]; e < rowptr[k + 1]; ++e)
        ++found[block_of[csr.column[e]] * group_outputs + k];
    assign_segments(rowptr, &rows_of);
    for (int64_t block = 0; block < blocks_a_group; ++block) {
      const uint32_t* of_block = found.data() + block * group_outputs;
      // The first block sets the sums and the last one writes them out, of empty rows too.
      const bool all = block == 0 || block + 1 == blocks_a_group;
      for (const auto& rows : rows_of) {
        segments.push_back({static_cast<uint32_t>(order.size()), at});
        const size_t begin = order.size();
        for (uint32_t k : rows)
          if (all || of_block[k] > 0) order.push_back(k);
        std::stable_sort(order.begin() + static_cast<ptrdiff_t>(begin), order.end(),
                         [&](uint32_t a, uint32_t b) { return of_block[a] > of_block[b]; });
        for (size_t i = begin; i < order.size(); ++i) {
          count.push_back(of_block[order[i]]);
          next[block * group_outputs + order[i]] = at;
          at += of_block[order[i]];
        }
      }
    }
    for (int64_t k = 0; k < group_outputs; ++k)
      for (int64_t e = rowptr[k]; e < rowptr[k + 1]; ++e) {
        const uint32_t to = next[block_of[csr.column[e]] * group_outputs + k]++;
        offset[to] = place[csr.column[e]];
        if (value_type == ValueType::kFloat32)
          value[to] = floats[e];
        else
          half[to] = halves[e];
      }
  }
  segments.push_back({static_cast<uint32_t>(order.size()), at});
  for (uint32_t n : count) longest = std::max<int64_t>(longest, n);
  unit_of_ = {};
}

void PackedConv::assign_segments(const int32_t* rowptr, std::vector<std::vector<uint32_t>>* rows_of) const {
  for (auto& rows : *rows_of) rows.clear();
  // A row without nonzeros still has to be written.
  const int64_t work = rowptr[group_outputs] - rowptr[0] + group_outputs;
  int64_t done = 0;
  for (int64_t k = 0; k < group_outputs; ++k) {
    const int64_t segment = std::min(segment_count_ - 1, done * segment_count_ / work);
    (*rows_of)[static_cast<size_t>(segment)].push_back(static_cast<uint32_t>(k));
    done += rowptr[k + 1] - rowptr[k] + 1;
  }
}

PackedConv::Rows PackedConv::rows(int64_t group, int64_t block, int64_t first_segment,
                                  int64_t last_segment) const {
  const int64_t at = (group * block_count() + block) * segment_count_;
  const Segment first = segments[at + first_segment], last = segments[at + last_segment];
  return {order.data() + first.row,
          count.data() + first.row,
          offset.data() + first.nonzero,
          value.empty() ? nullptr : value.data() + first.nonzero,
          half.empty() ? nullptr : half.data() + first.nonzero,
          static_cast<int>(last.row - first.row)};
}

}  // namespace finepruning
