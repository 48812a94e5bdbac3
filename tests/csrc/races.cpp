// Runs every kind of native step from several threads at once, each call on a team of its own, and compares
// what comes out with a run on one thread, bit for bit. Built with ThreadSanitizer by scripts/sanitize.sh.
#include <bit>
#include <cstdio>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "program.hpp"

using namespace finepruning;

namespace {

constexpr int kCallers = 3, kCalls = 4;
constexpr int64_t kImages = 20, kChannels = 6, kSide = 14, kOutputs = 80, kPooled = 7;
constexpr int64_t kIn = kChannels * kSide * kSide, kOut = kOutputs * kSide * kSide;
constexpr int64_t kSmall = kOutputs * kPooled * kPooled, kPadded = 32;  // images in whole vectors

std::mt19937 chance(0);

float any() { return std::uniform_real_distribution<float>(-1, 1)(chance); }

struct Weights {
  ValueType type;
  std::vector<float> value;
  std::vector<uint16_t> half;  // the upper half of each value, which is a bfloat16
  std::vector<int32_t> column, rowptr{0};

  Weights(int64_t rows, int64_t columns, ValueType type) : type(type) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c)
        if (chance() % 4 == 0) {
          value.push_back(any());
          half.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(value.back()) >> 16));
          column.push_back(static_cast<int32_t>(c));
        }
      rowptr.push_back(static_cast<int32_t>(value.size()));
    }
  }
  CsrView view() const {
    const void* data = type == ValueType::kFloat32 ? static_cast<const void*>(value.data())
                                                   : static_cast<const void*>(half.data());
    return {data,
            type,
            column.data(),
            rowptr.data(),
            static_cast<int64_t>(rowptr.size()) - 1,
            static_cast<int64_t>(value.size())};
  }
};

Finish finish(int64_t outputs, int residual = -1) {
  Finish f;
  for (int64_t i = 0; i < outputs; ++i) f.bias.push_back(any());
  f.residual = residual;
  f.low = 0;
  f.high = std::numeric_limits<float>::infinity();
  return f;
}

const ConvShape kConv{kChannels, kSide, kSide, kOutputs, 3, 3, 1, 1, 1, 1, 1, 1, 1};
const ConvShape kMatrixShape{kSmall, 1, 1, 10, 1, 1, 1, 1, 0, 0, 1, 1, 1};
const PoolArgs kPool{kSide, kSide, kPooled, kPooled, 2, 2, 2, 2, 0, 0, 1, 1, true, false, 0, 0, 0, 0, 0};
const Bands kWhole{kSide, kSide, kSide}, kHalves{kSide, kSide, kSide / 2}, kResult{kPooled, kPooled, kPooled};

std::shared_ptr<PackedConv> pack(const ConvShape& shape, const Weights& weights, Mapping mapping,
                                 const Isa& isa, int64_t matrix_blocks = 1, bool pooled = false,
                                 const MapBands& bands = {}) {
  return std::make_shared<PackedConv>(shape, weights.view(), mapping, isa, matrix_blocks, pooled, 2, bands,
                                      PackedConv::Choice{});
}

// Vectors of images: transposed, convolved, gated and pooled (or pooled while convolved), classified,
// transposed back.
void in_lanes(Program& p, const Isa& isa, ValueType type, bool pooled) {
  const Weights conv(kOutputs, kChannels * 9, type), linear(10, kSmall, type);
  const int input = p.add_buffer(Buffer::kInput, 0, kImages * kIn);
  const int lanes = p.add_buffer(Buffer::kArena, 0, kPadded * kIn);
  int64_t at = kPadded * kIn;
  const auto arena = [&](int64_t floats) {
    at += floats;
    return p.add_buffer(Buffer::kArena, at - floats, floats);
  };
  const int map = arena(kPadded * kOut), gated = arena(kPadded * kOut), small = arena(kPadded * kSmall);
  const int classes = arena(kPadded * 10);
  add_transpose(p, input, lanes, isa, kImages, kIn, true);
  add_conv(p, lanes, pooled ? small : map, pack(kConv, conv, Mapping::kLanes, isa, 1, pooled),
           finish(kOutputs), kPadded / isa.lanes);
  if (!pooled) {
    add_broadcast(p, map, map, gated, isa, kPadded / isa.lanes, kOutputs, kSide * kSide, true, Binary::kMul,
                  Activation::kSilu);
    add_pool(p, gated, small, isa, kPool, {kPadded / isa.lanes, kOutputs, true, kWhole, kResult});
  }
  add_conv(p, small, classes, pack(kMatrixShape, linear, Mapping::kMatrix, isa, kPadded / isa.lanes),
           finish(10), kPadded / isa.lanes);
  add_transpose(p, classes, p.add_buffer(Buffer::kOutput, 0, kImages * 10), isa, kImages, 10, false);
}

// Image by image, in a loop over chunks of 5: a convolution with a residual, pooling, copies; then a layer by
// gathering.
void planar(Program& p, const Isa& isa, ValueType type, Mapping mapping) {
  const Weights conv(kOutputs, kChannels * 9, type), linear(10, kSmall, type);
  constexpr int64_t kTurns = 4, kChunk = kImages / kTurns;
  const auto packed = pack(kConv, conv, mapping, isa);
  const int input = p.add_buffer(Buffer::kInput, 0, kChunk * kIn, kChunk * kIn, kTurns);
  const int map = p.add_buffer(Buffer::kArena, 0, kChunk * kOut);
  int64_t at = kChunk * kOut;
  const int sum = p.add_buffer(Buffer::kArena, at, kChunk * kOut);
  at += kChunk * kOut;
  const int small = p.add_buffer(Buffer::kArena, at, kChunk * kSmall);
  at += kChunk * kSmall;
  const int window = p.add_buffer(Buffer::kArena, at, kChunk * kSmall, kChunk * kSmall, kTurns);
  const int all = p.add_buffer(Buffer::kArena, at, kImages * kSmall);
  add_conv(p, input, map, packed, finish(kOutputs), kChunk);
  add_conv(p, input, sum, packed, finish(kOutputs, map), kChunk);
  add_elementwise(p, sum, map, sum, isa, kChunk * kOut, Binary::kAdd, Activation::kHardswish);
  add_pool(p, sum, small, isa, kPool, {kChunk, kOutputs, false, kWhole, kResult});
  add_copy(p, small, window, kChunk, kSmall, 0, kSmall);
  p.add_loop(0, kTurns);
  add_gather(p, all, p.add_buffer(Buffer::kOutput, 0, kImages * 10), isa, select_gather(isa), linear.view(),
             kSmall, finish(10), kImages);
}

// Maps in two bands: convolutions into them and from them, with a residual, elementwise work, pooling.
void in_bands(Program& p, const Isa& isa, ValueType type, Mapping mapping) {
  const Weights conv(kOutputs, kChannels * 9, type), next(kOutputs, kOutputs * 9, type);
  const Weights linear(10, kSmall, type);
  ConvShape second = kConv;
  second.channels = kOutputs;
  const int64_t band = kImages * kOutputs * kHalves.pitch();
  const auto arena = [&](int64_t at) { return p.add_buffer(Buffer::kArena, at, band, 0, 1, 2, 2 * band); };
  const int input = p.add_buffer(Buffer::kInput, 0, kImages * kIn), map = arena(0), sum = arena(band);
  const int small = p.add_buffer(Buffer::kArena, 4 * band, kImages * kSmall);
  add_conv(p, input, map, pack(kConv, conv, mapping, isa, 1, false, {0, true}), finish(kOutputs), kImages);
  add_conv(p, map, sum, pack(second, next, mapping, isa, 1, false, {kHalves.rows, true}),
           finish(kOutputs, map), kImages);
  add_elementwise(p, sum, map, sum, isa, band, Binary::kAdd, Activation::kHardswish);
  add_pool(p, sum, small, isa, kPool, {kImages, kOutputs, false, kHalves, kResult});
  add_gather(p, small, p.add_buffer(Buffer::kOutput, 0, kImages * 10), isa, select_gather(isa), linear.view(),
             kSmall, finish(10), kImages);
}

std::vector<float> call(Program& p, const std::vector<float>& x, int threads) {
  std::vector<float> y(kImages * 10, std::numeric_limits<float>::quiet_NaN());
  const auto context = p.acquire(threads);
  p.run(*context, 0, p.size(), x.data(), static_cast<int64_t>(x.size()), y.data(),
        static_cast<int64_t>(y.size()));
  p.release(context);
  return y;
}

bool same(const char* isa, const char* name, const std::function<void(Program&)>& build) {
  Program p(1 << 21);
  build(p);
  std::vector<float> x(kImages * kIn);
  for (float& v : x) v = any();
  const std::vector<float> expected = call(p, x, 1);
  std::vector<std::thread> callers;
  std::vector<int> wrong(kCallers, 0);
  for (int c = 0; c < kCallers; ++c)
    callers.emplace_back([&, c] {
      for (int i = 0; i < kCalls; ++i) wrong[c] += call(p, x, 1 + (c + i) % 4) != expected;
    });
  for (std::thread& caller : callers) caller.join();
  int total = 0;
  for (int count : wrong) total += count;
  std::printf("%s %s: %d of %d calls differ\n", isa, name, total, kCallers * kCalls);
  return total == 0;
}

}  // namespace

int main() {
  bool ok = true;
  for (const char* name : kIsaNames) {
    const Isa* isa = find_isa(name);
    if (isa == nullptr) continue;
    for (ValueType type : {ValueType::kFloat32, ValueType::kBfloat16}) {
      ok &= same(name, "lanes", [&](Program& p) { in_lanes(p, *isa, type, false); });
      ok &= same(name, "lanes, pooled", [&](Program& p) { in_lanes(p, *isa, type, true); });
      ok &= same(name, "rows", [&](Program& p) { planar(p, *isa, type, Mapping::kRows); });
      ok &= same(name, "flat", [&](Program& p) { planar(p, *isa, type, Mapping::kFlat); });
      ok &= same(name, "rows in bands", [&](Program& p) { in_bands(p, *isa, type, Mapping::kRows); });
      ok &= same(name, "flat in bands", [&](Program& p) { in_bands(p, *isa, type, Mapping::kFlat); });
    }
  }
  return ok ? 0 : 1;
}
