// The other native steps: fully connected layers by gathering, pooling, elementwise work, copies.
#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "cost_model.hpp"
#include "division.hpp"
#include "pages.hpp"
#include "program.hpp"

namespace finepruning {
namespace {

constexpr int64_t kGrain = 8192;  // floats of light work worth handing to a thread

// Nonzeros of a row in a block of columns that are worth another visit to the row.
constexpr int64_t kBlockNonzeros = 64;
constexpr int64_t kMostColumns = 65536;  // of a block: positions have 16 bits

// Columns go in blocks whose part of the input the first-level cache holds beside the stream of weights.
class GatherStep final : public NativeStep {
 public:
  GatherStep(Buffer source, Buffer target, Buffer residual, const Isa& isa, GatherWay way, const CsrView& csr,
             int64_t columns, Finish finish, int64_t images)
      : source_(source),
        target_(target),
        residual_(residual),
        kernel_(isa.gather_rows[static_cast<int>(way)][static_cast<int>(csr.type)]),
        columns_(columns),
        images_(images),
        finish_(std::move(finish)),
        type_(csr.type),
        rowptr_(csr.rowptr, csr.rowptr + csr.rows + 1) {
    const int64_t fitting =
        std::min(ceil_div(columns * 4, kFirstLevelBytes), csr.nonzeros / csr.rows / kBlockNonzeros);
    blocks_ = std::max({int64_t{1}, fitting, ceil_div(columns, kMostColumns)});
    block_columns_ = ceil_div(columns, blocks_);
    pack(csr);
  }

  int64_t items(int threads) const override {
    const int64_t work = static_cast<int64_t>(column_.size()) / kGrain + 1;
    return images_ * std::min({work, rows(), int64_t{8} * threads});
  }

  void run(int64_t item, int threads, const Frame& frame, float*) const override {
    const int64_t parts = items(threads) / images_;
    const int64_t image = item / parts, part = item % parts;
    const int64_t r0 = cut(part, parts), r1 = cut(part + 1, parts);
    const float* x = resolve(source_, frame) + image * columns_;
    float* y = resolve(target_, frame) + image * rows() + r0;
    const float* before = finish_.residual >= 0 ? resolve(residual_, frame) + image * rows() + r0 : nullptr;
    const float* bias = finish_.bias.empty() ? nullptr : finish_.bias.data() + r0;
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    for (int64_t b = 0; b < blocks_; ++b) {
      const bool last = b + 1 == blocks_;
      kernel_(x + b * block_columns_, column_.data(), value_.data(), begin_.data() + b * (rows() + 1) + r0,
              bias, before, y, r1 - r0, last ? finish_.low : -kInfinity, last ? finish_.high : kInfinity);
      bias = nullptr;
      before = y;
    }
  }

 private:
  int64_t rows() const { return static_cast<int64_t>(rowptr_.size()) - 1; }
  int64_t cut(int64_t part, int64_t parts) const {
    if (part == 0) return 0;
    if (part == parts) return rows();
    const uint32_t at = static_cast<uint32_t>(rowptr_.back() * static_cast<int64_t>(part) / parts);
    return std::lower_bound(rowptr_.begin(), rowptr_.end() - 1, at) - rowptr_.begin();
  }

  // Block by block, row by row.
  void pack(const CsrView& csr) {
    const int bytes = value_bytes(type_);
    const char* value = static_cast<const char*>(csr.value);
    value_.reserve(static_cast<size_t>(csr.nonzeros * bytes));
    column_.reserve(static_cast<size_t>(csr.nonzeros));
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t first = b * block_columns_, end = first + block_columns_;
      for (int64_t r = 0; r < csr.rows; ++r) {
        begin_.push_back(static_cast<uint32_t>(column_.size()));
        const auto inside = [&](int64_t e) { return csr.column[e] >= first && csr.column[e] < end; };
        for (int64_t e = csr.rowptr[r]; e < csr.rowptr[r + 1]; ++e) {
          if (!inside(e)) continue;
          const int64_t start = e;
          for (; e < csr.rowptr[r + 1] && inside(e); ++e)
            column_.push_back(static_cast<uint16_t>(csr.column[e] - first));
          value_.insert(value_.end(), value + start * bytes, value + e * bytes);
        }
      }
      begin_.push_back(static_cast<uint32_t>(column_.size()));
    }
  }

  Buffer source_, target_, residual_;
  GatherRows kernel_;
  int64_t columns_, images_;
  int64_t blocks_ = 1, block_columns_ = 0;
  Finish finish_;
  ValueType type_;
  PageVector<char> value_;
  PageVector<uint16_t> column_;   // inside the block
  std::vector<uint32_t> rowptr_;  // of the whole matrix, by which rows are shared out
  std::vector<uint32_t> begin_;   // [block][row], and each block's end
};

// An item is some rows of one plane, or of several small ones, in the order in which neighbouring
// convolutions share out a map: image by image, rows by rows, so that a thread finds what it wrote itself.
class PoolStep final : public NativeStep {
 public:
  PoolStep(Buffer source, Buffer target, const Isa& isa, const PoolArgs& args, const PoolMaps& maps)
      : source_(source), target_(target), isa_(&isa), args_(args), maps_(maps) {
    args_.band_rows = maps.source.rows;
    args_.band = source.band;
  }

  int64_t items(int threads) const override {
    return maps_.images * parts(threads).count() * ceil_div(maps_.channels, channels_an_item(threads));
  }
  int64_t scratch_floats() const override { return maps_.lanes ? 0 : kPoolRows * pool_row_floats(args_); }

  void run(int64_t item, int threads, const Frame& frame, float* scratch) const override {
    const Bands parts = this->parts(threads), &result = maps_.result;
    const int64_t some = channels_an_item(threads), pieces = ceil_div(maps_.channels, some);
    const int64_t first = item % pieces * some, part = item / pieces % parts.count();
    const int64_t image = item / pieces / parts.count();
    PoolArgs args = args_;
    args.first = part * parts.rows;
    args.rows = parts.rows_of(part);
    const int64_t width = maps_.lanes ? isa_->lanes : 1;
    const int64_t band = args.first / result.rows, plane = image * maps_.channels + first;
    const int64_t read = maps_.source.pitch() * width, written = result.pitch() * width;
    const float* x = resolve(source_, frame) + plane * read;
    float* y = resolve(target_, frame) + band * target_.band + plane * written +
               (args.first - band * result.rows) * result.width * width;
    const int64_t count = std::min(some, maps_.channels - first);
    for (int64_t c = 0; c < count; ++c, x += read, y += written)
      maps_.lanes ? isa_->pool_lanes(x, y, args) : isa_->pool(x, y, args, scratch);
  }

 private:
  // Of the result: its bands, or shares of the threads where it lies whole.
  Bands parts(int threads) const {
    Bands parts = maps_.result;
    const int64_t sharing = std::max<int64_t>(1, threads / maps_.images);
    if (parts.count() == 1) parts.rows = std::max(ceil_div(parts.height, sharing), kLeastPoolRows);
    return parts;
  }

  // Small planes go several at a time, as long as every thread has some.
  int64_t channels_an_item(int threads) const {
    const int64_t width = maps_.lanes ? isa_->lanes : 1, floats = maps_.source.pitch() * width;
    return std::clamp<int64_t>(maps_.images * maps_.channels / (kItemsAThread * threads), 1,
                               std::max<int64_t>(1, kGrain / floats));
  }

  static constexpr int64_t kItemsAThread = 8;
  static constexpr int64_t kLeastPoolRows = 8;
  Buffer source_, target_;
  const Isa* isa_;
  PoolArgs args_;
  PoolMaps maps_;
};

class ElementwiseStep final : public NativeStep {
 public:
  ElementwiseStep(Buffer a, Buffer b, bool binary, Buffer target, const Isa& isa, int64_t n, Binary op,
                  Activation activation)
      : a_(a), b_(b), target_(target), binary_(binary), isa_(&isa), n_(n), op_(op), activation_(activation) {}

  int64_t items(int) const override { return target_.bands * ceil_div(n_, kGrain); }

  void run(int64_t item, int, const Frame& frame, float*) const override {
    const int64_t pieces = ceil_div(n_, kGrain), band = item / pieces, at = item % pieces * kGrain;
    isa_->elementwise(resolve(a_, frame) + band * a_.band + at,
                      binary_ ? resolve(b_, frame) + band * b_.band + at : nullptr,
                      resolve(target_, frame) + band * target_.band + at, std::min(kGrain, n_ - at), op_,
                      activation_);
  }

 private:
  Buffer a_, b_, target_;
  bool binary_;
  const Isa* isa_;
  int64_t n_;
  Binary op_;
  Activation activation_;
};

class BroadcastStep final : public NativeStep {
 public:
  BroadcastStep(Buffer a, Buffer b, Buffer target, const Isa& isa, int64_t rows, int64_t n, int lanes,
                Binary op, Activation activation)
      : a_(a),
        b_(b),
        target_(target),
        isa_(&isa),
        rows_(rows),
        n_(n),
        lanes_(lanes),
        op_(op),
        activation_(activation) {}

  int64_t items(int) const override { return target_.bands * rows_; }

  void run(int64_t item, int, const Frame& frame, float*) const override {
    const int64_t band = item / rows_, row = item % rows_;
    isa_->broadcast(
        resolve(a_, frame) + band * a_.band + row * n_ * lanes_, resolve(b_, frame) + row * lanes_,
        resolve(target_, frame) + band * target_.band + row * n_ * lanes_, 1, n_, lanes_, op_, activation_);
  }

 private:
  Buffer a_, b_, target_;
  const Isa* isa_;
  int64_t rows_, n_;
  int lanes_;
  Binary op_;
  Activation activation_;
};

class CopyStep final : public NativeStep {
 public:
  CopyStep(Buffer source, Buffer target, int64_t images, int64_t n, int64_t offset, int64_t stride)
      : source_(source), target_(target), images_(images), n_(n), offset_(offset), stride_(stride) {}

  int64_t items(int) const override { return target_.bands * images_ * ceil_div(n_, kGrain); }

  void run(int64_t item, int, const Frame& frame, float*) const override {
    const int64_t pieces = ceil_div(n_, kGrain);
    const int64_t band = item / pieces / images_, image = item / pieces % images_;
    const int64_t at = item % pieces * kGrain;
    std::memcpy(resolve(target_, frame) + band * target_.band + image * stride_ + offset_ + at,
                resolve(source_, frame) + band * source_.band + image * n_ + at,
                static_cast<size_t>(std::min(kGrain, n_ - at)) * 4);
  }

 private:
  Buffer source_, target_;
  int64_t images_, n_, offset_, stride_;
};

class TransposeStep final : public NativeStep {
 public:
  TransposeStep(Buffer source, Buffer target, const Isa& isa, int64_t images, int64_t n, bool to_lanes)
      : source_(source), target_(target), isa_(&isa), images_(images), n_(n), to_lanes_(to_lanes) {}

  int64_t items(int) const override { return ceil_div(images_, isa_->lanes) * ceil_div(n_, kPiece); }

  void run(int64_t item, int, const Frame& frame, float*) const override {
    const int64_t pieces = ceil_div(n_, kPiece);
    const int64_t image = item / pieces * isa_->lanes, at = item % pieces * kPiece;
    const int64_t planar = image * n_ + at, lanes = image * n_ + at * isa_->lanes;
    (to_lanes_ ? isa_->to_lanes : isa_->from_lanes)(resolve(source_, frame) + (to_lanes_ ? planar : lanes),
                                                    resolve(target_, frame) + (to_lanes_ ? lanes : planar),
                                                    std::min<int64_t>(isa_->lanes, images_ - image), n_,
                                                    std::min(kPiece, n_ - at));
  }

 private:
  static constexpr int64_t kPiece = 1024;
  Buffer source_, target_;
  const Isa* isa_;
  int64_t images_, n_;
  bool to_lanes_;
};

void require(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(message);
}

bool positive(std::initializer_list<int64_t> sizes) {
  return std::all_of(sizes.begin(), sizes.end(), [](int64_t v) { return v >= 1 && v <= (int64_t{1} << 36); });
}

}  // namespace

void add_gather(Program& program, int source, int target, const Isa& isa, GatherWay way, const CsrView& csr,
                int64_t columns, Finish finish, int64_t images) {
  require(isa.gather_rows[static_cast<int>(way)][0] != nullptr, "these kernels have no gather instructions");
  require(positive({images, columns, csr.rows}), "columns must lie in [1, 2^28]");
  require(csr.rowptr[0] == 0 && csr.rowptr[csr.rows] == csr.nonzeros, "rowptr must run from 0 to nnz");
  for (int64_t r = 0; r < csr.rows; ++r)
    require(csr.rowptr[r] <= csr.rowptr[r + 1], "rowptr must not descend");
  for (int64_t e = 0; e < csr.nonzeros; ++e)
    require(csr.column[e] >= 0 && csr.column[e] < columns, "a column lies outside the weight");
  require(finish.bias.empty() || static_cast<int64_t>(finish.bias.size()) == csr.rows,
          "bias must have one value per output");
  const Buffer from = program.buffer(source, images * columns),
               to = program.buffer(target, images * csr.rows);
  const Buffer residual = finish.residual >= 0 ? program.buffer(finish.residual, images * csr.rows) : to;
  program.add_step(
      std::make_unique<GatherStep>(from, to, residual, isa, way, csr, columns, std::move(finish), images));
}

void add_pool(Program& program, int source, int target, const Isa& isa, const PoolArgs& a,
              const PoolMaps& maps) {
  require(positive({maps.images, maps.channels, a.height, a.width, a.out_height, a.out_width, a.kernel_h,
                    a.kernel_w, a.stride_h, a.stride_w, a.dilation_h, a.dilation_w, maps.source.rows,
                    maps.result.rows}) &&
              a.pad_h >= 0 && a.pad_w >= 0 && a.pad_h <= a.kernel_h && a.pad_w <= a.kernel_w,
          "pooling sizes are out of range");
  require(!maps.lanes || (maps.source.count() == 1 && maps.result.count() == 1),
          "only planar maps lie in bands");
  const int64_t width = maps.lanes ? isa.lanes : 1, planes = maps.images * maps.channels;
  const Buffer from =
      program.buffer(source, planes * maps.source.pitch() * width, maps.source.count(), maps.lanes);
  const Buffer to =
      program.buffer(target, planes * maps.result.pitch() * width, maps.result.count(), maps.lanes);
  program.add_step(std::make_unique<PoolStep>(from, to, isa, a, maps));
}

void add_elementwise(Program& program, int a, int b, int target, const Isa& isa, int64_t n, Binary op,
                     Activation activation) {
  require(positive({n}), "sizes must be positive");
  const int64_t bands = program.bands(target);
  const Buffer from = program.buffer(a, n, bands), to = program.buffer(target, n, bands);
  const Buffer other = b >= 0 ? program.buffer(b, n, bands) : from;
  program.add_step(std::make_unique<ElementwiseStep>(from, other, b >= 0, to, isa, n, op, activation));
}

void add_broadcast(Program& program, int a, int b, int target, const Isa& isa, int64_t images,
                   int64_t channels, int64_t n, bool lanes, Binary op, Activation activation) {
  require(positive({images, channels, n}), "sizes must be positive");
  const int width = lanes ? isa.lanes : 1;
  const int64_t rows = images * channels, bands = program.bands(target);
  const Buffer from = program.buffer(a, rows * n * width, bands, lanes);
  const Buffer other = program.buffer(b, rows * width, 1, lanes);
  const Buffer to = program.buffer(target, rows * n * width, bands, lanes);
  program.add_step(std::make_unique<BroadcastStep>(from, other, to, isa, rows, n, width, op, activation));
}

void add_copy(Program& program, int source, int target, int64_t images, int64_t n, int64_t target_offset,
              int64_t target_stride) {
  require(positive({images, n, target_stride}) && target_offset >= 0 && target_offset + n <= target_stride,
          "a copy must stay inside its target");
  const int64_t bands = program.bands(target);
  const Buffer from = program.buffer(source, images * n, bands);
  const Buffer to = program.buffer(target, images * target_stride, bands);
  program.add_step(std::make_unique<CopyStep>(from, to, images, n, target_offset, target_stride));
}

void add_transpose(Program& program, int source, int target, const Isa& isa, int64_t images, int64_t n,
                   bool to_lanes) {
  require(positive({images, n}), "sizes must be positive");
  const int64_t padded = ceil_div(images, isa.lanes) * isa.lanes * n;
  const Buffer from = program.buffer(source, to_lanes ? images * n : padded, 1, !to_lanes);
  const Buffer to = program.buffer(target, to_lanes ? padded : images * n, 1, to_lanes);
  program.add_step(std::make_unique<TransposeStep>(from, to, isa, images, n, to_lanes));
}

}  // namespace finepruning
