// Sparse convolution: for each tile of output positions, pack one block of input after the other and run
// the tile kernel over a range of output channels.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "program.hpp"

namespace finepruning {
namespace {

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
        image_tiles_(packed_->mapping == Mapping::kMatrix
                         ? (images + packed_->tile_rows - 1) / packed_->tile_rows
                         : images) {}

  int64_t items(int threads) const override { return base_items() * parts(threads); }

  int64_t scratch_floats() const override {
    const int64_t sums =
        packed_->block_count() > 1 ? packed_->group_outputs * packed_->tile_vectors() * int64_t{kLanes} : 0;
    return packed_->block_bytes() / 4 + sums;
  }

  void run(int64_t item, int threads, const Frame& frame, float* scratch) const override {
    const PackedConv& p = *packed_;
    const int64_t parts = this->parts(threads);
    const int64_t part = item % parts;
    item /= parts;
    const int64_t tile = item % p.tiles();
    item /= p.tiles();
    const int64_t group = item % p.shape.groups;
    const int64_t image = item / p.shape.groups;
    int64_t k0, k1;
    p.part_rows(group, part, parts, &k0, &k1);
    if (k0 == k1) return;

    TileArgs args{};
    args.partial = scratch + p.block_bytes() / 4;
    args.channels = static_cast<int>(k1 - k0);
    args.input_row = p.unit_columns * kVectorBytes;
    args.columns = p.tile_columns;
    args.low = finish_.low;
    args.high = finish_.high;
    args.offset = p.offset.data();
    args.value = p.value.data();
    const int64_t k = group * p.group_outputs + k0;
    args.bias = finish_.bias.empty() ? nullptr : finish_.bias.data() + k;
    const float* source = resolve(source_, frame);
    const int64_t at = place(image, tile, k, &args);
    args.output = resolve(target_, frame) + at;
    args.residual = finish_.residual >= 0 ? resolve(residual_, frame) + at : nullptr;

    for (int64_t b = 0; b < p.block_count(); ++b) {
      args.input = reinterpret_cast<const char*>(gather(source, image, group, tile, b, scratch));
      args.rowptr = p.rowptr.data() + (group * p.block_count() + b) * p.group_outputs + k0;
      args.first = b == 0;
      args.last = b + 1 == p.block_count();
      p.kernel(args);
    }
  }

 private:
  int64_t base_items() const { return image_tiles_ * packed_->shape.groups * packed_->tiles(); }

  // Output channels are split between threads when there are too few tiles; every part packs its input anew.
  int64_t parts(int threads) const {
    const int64_t base = base_items();
    if (base >= 4 * threads) return 1;
    const double copy = packed_->copy_share;
    int64_t best = 1;
    double best_time = 0;
    for (int64_t n = 1; n <= std::min<int64_t>(packed_->group_outputs, 4 * threads); ++n) {
      const double turns = static_cast<double>((base * n + threads - 1) / threads);
      const double time = turns * (copy + (1.0 - copy) / static_cast<double>(n));
      if (n == 1 || time < best_time * 0.97) {
        best = n;
        best_time = time;
      }
    }
    return best;
  }

  // Fills in where the tile's result goes; returns its offset in the output.
  int64_t place(int64_t image, int64_t tile, int64_t k, TileArgs* args) const {
    const PackedConv& p = *packed_;
    const int64_t oh = p.shape.out_height(), ow = p.shape.out_width(), outputs = p.shape.out_channels;
    const int64_t y = tile / p.tiles_x * p.tile_rows, x = tile % p.tiles_x * p.tile_columns;
    args->rows_used = static_cast<int>(std::min<int64_t>(p.tile_rows, oh - y));
    args->columns_used = p.tile_columns;
    args->tail = kLanes;
    int64_t lanes = 0;
    switch (p.mapping) {
      case Mapping::kLanes:
        args->output_channel = oh * ow * kLanes;
        args->output_row = ow * kLanes;
        args->columns_used = static_cast<int>(std::min<int64_t>(p.tile_columns, ow - x));
        return ((image * outputs + k) * oh * ow + y * ow + x) * kLanes;
      case Mapping::kRows:
        args->output_channel = oh * ow;
        args->output_row = ow;
        lanes = std::min<int64_t>(p.tile_columns * int64_t{kLanes}, ow - x * kLanes);
        break;
      case Mapping::kFlat:
        args->output_channel = oh * ow;
        args->rows_used = 1;
        lanes = std::min<int64_t>(p.tile_columns * int64_t{kLanes}, oh * ow - x * kLanes);
        break;
      case Mapping::kMatrix:
        args->output_channel = kLanes;
        args->output_row = outputs * kLanes;
        args->rows_used = static_cast<int>(std::min<int64_t>(p.tile_rows, images_ - image * p.tile_rows));
        return (image * p.tile_rows * outputs + k) * kLanes;
    }
    args->columns_used = static_cast<int>((lanes + kLanes - 1) / kLanes);
    args->tail = static_cast<int>(lanes - (args->columns_used - 1) * int64_t{kLanes});
    return (image * outputs + k) * oh * ow + y * ow + x * kLanes;
  }

  // The packed input of one block: built in `scratch`, or in place where it already lies that way.
  const float* gather(const float* source, int64_t image, int64_t group, int64_t tile, int64_t block,
                      float* scratch) const {
    const PackedConv& p = *packed_;
    const ConvShape& s = p.shape;
    const int64_t first = p.blocks[block], last = p.blocks[block + 1];
    if (p.mapping == Mapping::kMatrix) {
      const float* rows = source + (image * p.tile_rows * s.channels + first) * kLanes;
      if (p.tile_rows == 1) return rows;
      const int64_t used = std::min<int64_t>(p.tile_rows, images_ - image * p.tile_rows);
      for (int64_t u = 0; u < last - first; ++u)
        for (int64_t r = 0; r < p.tile_rows; ++r)
          std::memcpy(scratch + (u * p.tile_rows + r) * kLanes,
                      rows + (std::min(r, used - 1) * s.channels + u) * kLanes, kVectorBytes);
      return scratch;
    }
    const bool lanes = p.mapping == Mapping::kLanes;
    const int64_t width = lanes ? kLanes : 1;  // floats of one element
    const int64_t y = tile / p.tiles_x * p.tile_rows;
    const int64_t x = tile % p.tiles_x * p.tile_columns * (lanes ? 1 : kLanes);
    const CopyRow copy = lanes ? p.isa->copy_row_lanes : p.isa->copy_row;
    const int64_t count = p.unit_columns * (lanes ? 1 : int64_t{kLanes});
    const float* channels =
        source + (image * s.channels + group * p.group_channels) * s.height * s.width * width;
    float* out = scratch;
    for (int64_t u = first; u < last; ++u) {
      const Unit& unit = p.units[u];
      const float* plane = channels + unit.channel * s.height * s.width * width;
      if (p.mapping == Mapping::kFlat) {
        gather_run(plane, unit, x, out);
      } else {
        for (int64_t r = 0; r < p.unit_rows; ++r) {
          const int64_t iy = (y + r) * s.stride_h + unit.dy - s.pad_h;
          float* row = out + r * p.unit_columns * kLanes;
          if (iy < 0 || iy >= s.height)
            std::memset(row, 0, static_cast<size_t>(p.unit_columns) * kVectorBytes);
          else
            copy(row, plane + iy * s.width * width, x * s.stride_w + unit.dx - s.pad_w, s.stride_w, count,
                 s.width);
        }
      }
      out += static_cast<int64_t>(p.unit_rows) * p.unit_columns * kLanes;
    }
    return scratch;
  }

  // Output positions [q, q + tile) of the flattened map, read through one tap.
  void gather_run(const float* plane, const Unit& unit, int64_t q, float* out) const {
    const PackedConv& p = *packed_;
    const ConvShape& s = p.shape;
    const int64_t ow = s.out_width(), size = s.out_height() * ow;
    const int64_t count = p.tile_columns * int64_t{kLanes};
    const bool pointwise = s.stride_h == 1 && s.stride_w == 1 && s.pad_h == 0 && s.pad_w == 0 &&
                           s.width == ow && s.height * s.width == size;
    if (pointwise) return p.isa->copy_row(out, plane, q, 1, count, size);
    const int64_t end = std::min(q + count, size);
    float* to = out;
    while (q < end) {
      const int64_t oy = q / ow, ox = q % ow, run = std::min(ow - ox, end - q);
      const int64_t iy = oy * s.stride_h + unit.dy - s.pad_h;
      if (iy < 0 || iy >= s.height)
        std::memset(to, 0, static_cast<size_t>(run) * 4);
      else
        p.isa->copy_row(to, plane + iy * s.width, ox * s.stride_w + unit.dx - s.pad_w, s.stride_w, run,
                        s.width);
      to += run;
      q += run;
    }
    std::memset(to, 0, static_cast<size_t>(out + count - to) * 4);
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
  const int64_t width =
      packed->mapping == Mapping::kLanes || packed->mapping == Mapping::kMatrix ? kLanes : 1;
  if (images < 1 || images > (1 << 28)) throw std::invalid_argument("images must lie in [1, 2^28]");
  if (!finish.bias.empty() && static_cast<int64_t>(finish.bias.size()) != s.out_channels)
    throw std::invalid_argument("bias must have one value per output channel");
  const int64_t out = images * s.out_channels * s.out_height() * s.out_width() * width;
  const Buffer& from = program.buffer(source, images * s.channels * s.height * s.width * width);
  const Buffer& to = program.buffer(target, out);
  const Buffer residual = finish.residual >= 0 ? program.buffer(finish.residual, out) : to;
  program.add_step(
      std::make_unique<ConvStep>(from, to, residual, std::move(packed), std::move(finish), images));
}

}  // namespace finepruning
