// A list of native steps over one arena, run without allocation inside one team of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "isa.hpp"
#include "packed_conv.hpp"

namespace finepruning {

// Where a step finds its data: in the arena, or in the caller's input or output.
struct Buffer {
  enum Kind : int { kArena, kInput, kOutput };
  Kind kind;
  int64_t offset, size;  // floats; of each band
  int64_t stride;        // floats that a turn of a loop moves it by
  int64_t bands, band;   // how many, and floats from each to the next
};

// Steps [first, last) that run `turns` times over: a chunk of the images at a time, so that what one step
// leaves is still in the cache when the next one reads it.
struct Loop {
  size_t first, last;
  int64_t turns;
};

// Memory of one call in flight.
class Context {
 public:
  Context(int64_t arena_floats, int64_t scratch_floats, int threads, size_t counters);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  float* arena() const { return memory_; }
  float* scratch(int thread) const { return memory_ + arena_floats_ + thread * scratch_floats_; }
  int threads() const { return threads_; }
  // Whether it is large enough for such a program.
  bool fits(int64_t arena_floats, int64_t scratch_floats, size_t counters) const {
    return arena_floats_ >= arena_floats && scratch_floats_ >= scratch_floats && counter_count_ >= counters;
  }
  int64_t bytes() const { return floats_ * 4; }
  // How many items of a thread's share are taken; one for every step and turn. Zero between calls.
  std::atomic<int64_t>& counter(int thread, size_t index) {
    return counters_[static_cast<size_t>(thread) * (counter_count_ + kApart) + index];
  }
  void reset(int thread, size_t counters);

 private:
  float* memory_ = nullptr;
  int64_t arena_floats_, scratch_floats_, floats_;
  int threads_;
  // Unused counters between those of two threads, for cache lines of their own.
  static constexpr size_t kApart = 16;
  size_t counter_count_;
  std::unique_ptr<std::atomic<int64_t>[]> counters_;
};

// The pointers one call works on.
struct Frame {
  Context* context;
  const float* input;
  float* output;
  int64_t turn = 0;  // of the loop that is running
};

class NativeStep {
 public:
  virtual ~NativeStep() = default;
  // Independent pieces of work when `threads` share them.
  virtual int64_t items(int threads) const = 0;
  virtual void run(int64_t item, int threads, const Frame& frame, float* scratch) const = 0;
  virtual int64_t scratch_floats() const { return 0; }
};

class Program {
 public:
  // Offsets must be multiples of 16 floats. Throws std::invalid_argument, as all add_ functions do.
  explicit Program(int64_t arena_floats);

  // With a stride, the buffer is a window that moves by it in each of `turns` turns of the loop that uses it.
  // `bands` of `size` floats each may lie `band` floats apart in the arena.
  int add_buffer(Buffer::Kind kind, int64_t offset, int64_t size, int64_t stride = 0, int64_t turns = 1,
                 int64_t bands = 1, int64_t band = 0);
  // The steps added from `first` on, up to now, run `turns` times. Loops follow each other in order.
  void add_loop(size_t first, int64_t turns);
  void add_step(std::unique_ptr<NativeStep> step) { steps_.push_back(std::move(step)); }
  // A buffer that holds `needed` floats in each of so many bands; whole aligned vectors of images side by
  // side if `lanes`, which the caller's memory does not promise.
  const Buffer& buffer(int id, int64_t needed, int64_t bands = 1, bool lanes = false) const;
  int64_t bands(int id) const;  // of a buffer
  // Throws std::invalid_argument unless the context was acquired from this program as it is now.
  void check(const Context& context) const;

  size_t size() const { return steps_.size(); }
  int64_t context_bytes(int threads) const;
  std::shared_ptr<Context> acquire(int threads);
  void release(std::shared_ptr<Context> context);
  // Runs steps [first, last). Input and output must hold what the buffers of those kinds need.
  void run(Context& context, size_t first, size_t last, const float* input, int64_t input_size, float* output,
           int64_t output_size) const;

 private:
  int64_t scratch_floats() const;
  size_t counters() const;
  void run_steps(const Frame& frame, size_t first, size_t last, size_t counter) const;
  int64_t arena_floats_;
  int64_t input_needed_ = 0, output_needed_ = 0;
  std::vector<Buffer> buffers_;
  std::vector<int64_t> turns_;  // that each buffer fits
  std::vector<std::unique_ptr<NativeStep>> steps_;
  std::vector<Loop> loops_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<Context>> idle_;
};

inline float* resolve(const Buffer& b, const Frame& f) {
  const int64_t at = b.offset + f.turn * b.stride;
  if (b.kind == Buffer::kInput) return const_cast<float*>(f.input) + at;
  return (b.kind == Buffer::kOutput ? f.output : f.context->arena()) + at;
}

// What happens to a convolution's sums: + bias + residual, then clamped to [low, high].
struct Finish {
  std::vector<float> bias;  // [out_channels] or empty
  int residual = -1;        // buffer laid out as the output, or -1
  float low, high;
};

// images: lane blocks under kLanes, images under kRows and kFlat, vectors of rows under kMatrix.
void add_conv(Program& program, int source, int target, std::shared_ptr<const PackedConv> packed,
              Finish finish, int64_t images);
// Fully connected layer on `images` single rows, x gathered in a way that the instruction set must have.
void add_gather(Program& program, int source, int target, const Isa& isa, GatherWay way, const CsrView& csr,
                int64_t columns, Finish finish, int64_t images);
// The maps that a pool reads and writes. images: vectors of them in lanes.
struct PoolMaps {
  int64_t images, channels;
  bool lanes;
  Bands source, result;
};
void add_pool(Program& program, int source, int target, const Isa& isa, const PoolArgs& args,
              const PoolMaps& maps);
// n: of each band of the target's. So for copies, too.
void add_elementwise(Program& program, int a, int b, int target, const Isa& isa, int64_t n, Binary op,
                     Activation activation);
// a: [images][channels][n] in each of its bands, b: [images][channels]
void add_broadcast(Program& program, int a, int b, int target, const Isa& isa, int64_t images,
                   int64_t channels, int64_t n, bool lanes, Binary op, Activation activation);
// Copies n floats an image; image i goes to i * target_stride + target_offset.
void add_copy(Program& program, int source, int target, int64_t images, int64_t n, int64_t target_offset,
              int64_t target_stride);
// [images][n] <-> [vectors of images][n][lanes]
void add_transpose(Program& program, int source, int target, const Isa& isa, int64_t images, int64_t n,
                   bool to_lanes);

}  // namespace finepruning
