// Sparse convolution: for each tile of output positions, pack one block of input after the other and run
// the tile kernel over a range of output channels.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "cost_model.hpp"
#include "division.hpp"
#include "program.hpp"

namespace finepruning {
namespace {

constexpr int64_t kExpandedFloats = 1024;

class ConvStep final : public NativeStep {
 public:
  ConvStep(Buffer source, Buffer target, Buffer residual, std::shared_ptr<const PackedConv> packed,
           Finish finish, int64_t images)
      : source_(source),
        target_(target),
        residual_(residual),
        packed_(std::move(packed)),
        finish_(std::move(finish)),
        images_(images),
        image_tiles_(packed_->mapping == Mapping::kMatrix ? ceil_div(images, packed_->tile_rows) : images) {}

  int64_t items(int threads) const override { return base_items() * parts(threads); }

  int64_t scratch_floats() const override {
    const int64_t sums = packed_->block_count() > 1
                             ? packed_->group_outputs * packed_->tile_vectors() * int64_t{packed_->lanes()}
                             : 0;
    return packed_->block_bytes() / 4 + expanded_floats() + sums;
  }

  void run(int64_t item, int threads, const Frame& frame, float* scratch) const override {
    const PackedConv& p = *packed_;
    const int64_t parts = this->parts(threads);
    const int64_t part = item % parts;
    item /= parts;
    const PackedConv::Tile tile = p.tile(item % p.tiles());
    const int64_t image = item / p.tiles();
    int64_t first_segment, last_segment;
    p.part_segments(part, parts, &first_segment, &last_segment);

    TileArgs args{};
    float* const values = scratch + p.block_bytes() / 4;
    args.partial = values + expanded_floats();
    args.input_row = p.unit_columns * p.vector_bytes();
    args.columns = p.tile_columns;
    args.low = finish_.low;
    args.high = finish_.high;
    args.pooled = p.pooled;
    const int64_t k = tile.group * p.group_outputs;
    args.bias = finish_.bias.empty() ? nullptr : finish_.bias.data() + k;
    const float* source = resolve(source_, frame);
    const int64_t at = place(image, tile, k, &args);
    args.output = resolve(target_, frame) + at;
    args.residual = finish_.residual >= 0 ? resolve(residual_, frame) + at : nullptr;
    args.stream = streams(args);
    args.fetch = p.fetches_result() && !args.stream;

    for (int64_t b = 0; b < p.block_count(); ++b) {
      args.input = reinterpret_cast<const char*>(gather(source, image, tile, b, scratch));
      const PackedConv::Rows rows = p.rows(tile.group, b, first_segment, last_segment);
      args.order = rows.order;
      args.count = rows.count;
      args.offset = rows.offset;
      args.value = rows.value;
      args.rows = rows.rows;
      args.first = b == 0;
      args.last = b + 1 == p.block_count();
      if (p.value_type == ValueType::kFloat32)
        p.kernel(args);
      else
        run_halves(rows, values, args);
    }
  }

 private:
  // Scratch for values that are stored in 16 bits: few enough to stay beside the packed input in the
  // first-level cache, and at least the longest row.
  int64_t expanded_floats() const {
    if (packed_->value_type == ValueType::kFloat32) return 0;
    return (expanded_room() + kReadAhead + kLineFloats - 1) / kLineFloats * kLineFloats;
  }

  int64_t expanded_room() const { return std::max<int64_t>(packed_->longest, kExpandedFloats); }

  // The tile kernel over some rows at a time, whose values are expanded to float32 just before.
  void run_halves(const PackedConv::Rows& rows, float* values, TileArgs args) const {
    const PackedConv& p = *packed_;
    const Expand expand = p.isa->expand[static_cast<int>(p.value_type)];
    const int64_t room = expanded_room();
    const uint16_t* half = rows.half;
    args.value = values;
    for (int row = 0; row < rows.rows; row += args.rows) {
      int64_t nonzeros = rows.count[row];
      args.rows = 1;
      while (row + args.rows < rows.rows && nonzeros + rows.count[row + args.rows] <= room)
        nonzeros += rows.count[row + args.rows++];
      expand(half, values, nonzeros);
      p.kernel(args);
      half += nonzeros;
      args.offset += nonzeros;
      args.order += args.rows;
      args.count += args.rows;
    }
  }

  // Whether a tile goes past the caches, which pays where a vector is a line and whole lines are written.
  bool streams(const TileArgs& args) const {
    const PackedConv& p = *packed_;
    const int64_t pool = p.pooled ? 2 : 1;
    const bool lines = p.lanes() == kLineFloats && args.output_channel % kLineFloats == 0 &&
                       (p.tile_rows <= pool || args.output_row % kLineFloats == 0) &&
                       reinterpret_cast<uintptr_t>(args.output) % (kLineFloats * sizeof(float)) == 0;
    return lines && args.residual == nullptr && (p.mapping == Mapping::kLanes || !p.pooled) &&
           images_ * p.shape.out_channels * args.output_channel * int64_t{sizeof(float)} > kStreamedBytes;
  }

  int64_t base_items() const { return image_tiles_ * packed_->tiles(); }

  // Output channels are split between threads when there are too few tiles; every part packs its input anew.
  int64_t parts(int threads) const {
    return PackedConv::split(base_items(), threads, packed_->copy_share, packed_->segment_count()).parts;
  }

  // Fills in where the tile's result goes; returns its offset in the output.
  int64_t place(int64_t image, const PackedConv::Tile& tile, int64_t k, TileArgs* args) const {
    const PackedConv& p = *packed_;
    const Bands out = p.out_bands(), result = p.result_bands();
    const int64_t outputs = p.shape.out_channels, rows = out.rows_of(tile.band);
    const int64_t pool = p.pooled ? 2 : 1;  // rows and columns of the output for one of the result
    // Of one element, where the result is stored.
    const int64_t width = p.mapping == Mapping::kLanes ? p.lanes() : 1;
    args->rows_used = static_cast<int>(std::min<int64_t>(p.tile_rows, rows - tile.y));
    args->columns_used = p.tile_columns;
    args->tail = p.lanes();
    args->output_channel = result.pitch() * width;
    args->output_row = result.width * width;
    const int64_t at = tile.band * target_.band + (image * outputs + k) * args->output_channel +
                       tile.y / pool * args->output_row + tile.x / pool * width;
    int64_t lanes = p.tile_columns * int64_t{p.lanes()};
    switch (p.mapping) {
      case Mapping::kLanes:
        args->columns_used = static_cast<int>(std::min<int64_t>(p.tile_columns, out.width - tile.x));
        return at;
      case Mapping::kRows:
        lanes = std::min(lanes, out.width - tile.x);
        break;
      case Mapping::kFlat:
        args->rows_used = 1;
        lanes = std::min(lanes, rows * out.width - tile.x);
        break;
      case Mapping::kMatrix:
        args->output_channel = p.lanes();
        args->output_row = outputs * p.lanes();
        args->rows_used = static_cast<int>(std::min<int64_t>(p.tile_rows, images_ - image * p.tile_rows));
        return (image * p.tile_rows * outputs + k) * p.lanes();
    }
    args->columns_used = static_cast<int>(ceil_div(lanes, p.lanes()));
    args->tail = static_cast<int>(lanes - (args->columns_used - 1) * int64_t{p.lanes()});
    return at;
  }

  // The packed input of one block: built in `scratch`, or in place where it already lies that way.
  const float* gather(const float* source, int64_t image, const PackedConv::Tile& tile, int64_t block,
                      float* scratch) const {
    const PackedConv& p = *packed_;
    const ConvShape& s = p.shape;
    const int64_t first = p.blocks[block], last = p.blocks[block + 1];
    if (p.mapping == Mapping::kMatrix) {
      const float* rows = source + (image * p.tile_rows * s.channels + first) * p.lanes();
      if (p.tile_rows == 1) return rows;
      const int64_t used = std::min<int64_t>(p.tile_rows, images_ - image * p.tile_rows);
      for (int64_t u = 0; u < last - first; ++u)
        for (int64_t r = 0; r < p.tile_rows; ++r)
          std::memcpy(scratch + (u * p.tile_rows + r) * p.lanes(),
                      rows + (std::min(r, used - 1) * s.channels + u) * p.lanes(), p.vector_bytes());
      return scratch;
    }
    const bool lanes = p.mapping == Mapping::kLanes;
    const int64_t width = lanes ? p.lanes() : 1;  // floats of one element
    const Bands bands = p.source_bands(), out = p.out_bands();
    const int64_t first_row = tile.band * out.rows;
    GatherArgs args;
    args.band_rows = bands.rows;
    args.pitch = bands.pitch();
    args.band = source_.band;
    args.source = source + (image * s.channels + tile.group * p.group_channels) * args.pitch * width;
    args.out = scratch;
    args.units = p.units.data() + first;
    args.count = last - first;
    args.unit_rows = p.unit_rows;
    args.unit_columns = p.unit_columns;
    args.y = first_row + tile.y;
    args.x = p.mapping == Mapping::kFlat ? first_row * out.width + tile.x : tile.x;
    args.end = (first_row + out.rows_of(tile.band)) * out.width;
    args.height = s.height;
    args.width = s.width;
    args.out_height = s.out_height();
    args.out_width = s.out_width();
    args.stride_h = s.stride_h;
    args.stride_w = s.stride_w;
    args.pad_h = s.pad_h;
    args.pad_w = s.pad_w;
    if (lanes)
      p.isa->gather_lanes_block(args);
    else if (p.mapping == Mapping::kRows)
      p.isa->gather_rows_block(args);
    else
      p.isa->gather_flat_block(args);
    return scratch;
  }

  Buffer source_, target_, residual_;
  std::shared_ptr<const PackedConv> packed_;
  Finish finish_;
  int64_t images_, image_tiles_;
};

}  // namespace

void add_conv(Program& program, int source, int target, std::shared_ptr<const PackedConv> packed,
              Finish finish, int64_t images) {
  const ConvShape& s = packed->shape;
  const bool lanes = packed->mapping == Mapping::kLanes || packed->mapping == Mapping::kMatrix;
  const int64_t width = lanes ? packed->lanes() : 1;
  if (images < 1 || images > (1 << 28)) throw std::invalid_argument("images must lie in [1, 2^28]");
  if (!finish.bias.empty() && static_cast<int64_t>(finish.bias.size()) != s.out_channels)
    throw std::invalid_argument("bias must have one value per output channel");
  const Bands given = packed->source_bands(), result = packed->result_bands();
  const int64_t in = images * s.channels * given.pitch() * width;
  const int64_t out = images * s.out_channels * result.pitch() * width;
  if (packed->pooled && finish.residual >= 0)
    throw std::invalid_argument("a pooled convolution takes no residual");
  const Buffer& from = program.buffer(source, in, given.count(), lanes);
  const Buffer& to = program.buffer(target, out, result.count(), lanes);
  const Buffer residual =
      finish.residual >= 0 ? program.buffer(finish.residual, out, result.count(), lanes) : to;
  if (residual.band != to.band)
    throw std::invalid_argument("bands of a residual must lie as far apart as the result's");
  program.add_step(
      std::make_unique<ConvStep>(from, to, residual, std::move(packed), std::move(finish), images));
}

}  // namespace finepruning
