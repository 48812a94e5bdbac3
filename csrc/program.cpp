#include "program.hpp"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "pages.hpp"

namespace finepruning {
namespace {

constexpr int64_t kMaxFloats = int64_t{1} << 40;
constexpr int64_t kMaxTurns = 1 << 20;
constexpr int64_t kMaxBands = 4096;
// Of a thread's share of a step, so much is left to it: one in so many items.
constexpr int64_t kSparedShare = 8;

void require(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(message);
}

}  // namespace

Context::Context(int64_t arena_floats, int64_t scratch_floats, int threads, size_t counters)
    : arena_floats_(arena_floats),
      scratch_floats_(scratch_floats),
      floats_(arena_floats + scratch_floats * threads),
      threads_(threads),
      counter_count_(counters),
      counters_(new std::atomic<int64_t>[static_cast<size_t>(threads) * (counters + kApart)]) {
  for (int thread = 0; thread < threads; ++thread) reset(thread, counters);
  const size_t wanted = static_cast<size_t>(floats_) * 4 + 64;
  const size_t page = wanted >= kHugePage ? kHugePage : 4096;
  memory_ = static_cast<float*>(allocate_pages((wanted + page - 1) / page * page));
}

void Context::reset(int thread, size_t counters) {
  for (size_t c = 0; c < counters; ++c) counter(thread, c).store(0, std::memory_order_relaxed);
}

Context::~Context() { std::free(memory_); }

Program::Program(int64_t arena_floats) : arena_floats_((arena_floats + 15) / 16 * 16) {
  require(arena_floats >= 0 && arena_floats <= kMaxFloats, "arena size is out of range");
}

int Program::add_buffer(Buffer::Kind kind, int64_t offset, int64_t size, int64_t stride, int64_t turns,
                        int64_t bands, int64_t band) {
  for (int64_t v : {offset, size, stride, band}) require(v >= 0 && v <= kMaxFloats, "buffer is out of range");
  require(turns >= 1 && turns <= kMaxTurns, "turns must lie in [1, 2^20]");
  require(bands >= 1 && bands <= kMaxBands, "bands must lie in [1, 4096]");
  require(bands == 1 || (kind == Buffer::kArena && stride == 0 && band >= size),
          "bands must lie apart in the arena");
  const int64_t end = offset + stride * (turns - 1) + band * (bands - 1) + size;
  if (kind == Buffer::kArena) {
    require(offset % kLineFloats == 0 && band % kLineFloats == 0,
            "buffer offsets must be multiples of 16 floats");
    require(end <= arena_floats_, "buffer does not fit into the arena");
  } else if (kind == Buffer::kInput) {
    input_needed_ = std::max(input_needed_, end);
  } else {
    output_needed_ = std::max(output_needed_, end);
  }
  buffers_.push_back({kind, offset, size, stride, bands, band});
  turns_.push_back(stride > 0 ? turns : kMaxTurns);
  return static_cast<int>(buffers_.size()) - 1;
}

void Program::add_loop(size_t first, int64_t turns) {
  require(first < steps_.size() && (loops_.empty() || loops_.back().last <= first),
          "a loop must hold steps that no other loop holds");
  require(turns >= 1 && turns <= kMaxTurns, "turns must lie in [1, 2^20]");
  for (int64_t fitting : turns_) require(turns <= fitting, "a buffer does not fit that many turns");
  loops_.push_back({first, steps_.size(), turns});
}

const Buffer& Program::buffer(int id, int64_t needed, int64_t bands, bool lanes) const {
  require(bands == this->bands(id), "a step does not fit its buffer's bands");
  const Buffer& found = buffers_[id];
  require(needed >= 0 && needed <= found.size, "a step does not fit its buffer");
  require(!lanes || (found.kind == Buffer::kArena && found.stride % kLineFloats == 0),
          "images side by side lie in the arena, at whole cache lines");
  return found;
}

int64_t Program::bands(int id) const {
  require(id >= 0 && static_cast<size_t>(id) < buffers_.size(), "no such buffer");
  return buffers_[id].bands;
}

int64_t Program::scratch_floats() const {
  int64_t floats = 0;
  for (const auto& step : steps_) floats = std::max(floats, step->scratch_floats());
  return (floats + 1023) / 1024 * 1024 + 256;  // the odd 1 KiB keeps threads' scratch off the same sets
}

size_t Program::counters() const {
  size_t count = steps_.size();
  for (const Loop& loop : loops_) count += (loop.last - loop.first) * static_cast<size_t>(loop.turns - 1);
  return count;
}

int64_t Program::context_bytes(int threads) const {
  return (arena_floats_ + scratch_floats() * std::max(threads, 1)) * 4;
}

std::shared_ptr<Context> Program::acquire(int threads) {
  require(threads >= 1 && threads <= 4096, "threads must lie in [1, 4096]");
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < idle_.size(); ++i)
      if (idle_[i]->threads() == threads && idle_[i]->fits(arena_floats_, scratch_floats(), counters())) {
        auto context = std::move(idle_[i]);
        idle_.erase(idle_.begin() + static_cast<ptrdiff_t>(i));
        return context;
      }
    idle_.clear();  // left from another number of threads
  }
  return std::make_shared<Context>(arena_floats_, scratch_floats(), threads, counters());
}

void Program::release(std::shared_ptr<Context> context) {
  std::lock_guard<std::mutex> lock(mutex_);
  idle_.push_back(std::move(context));
}

void Program::check(const Context& context) const {
  require(context.fits(arena_floats_, scratch_floats(), counters()),
          "the context is too small: it was acquired from another program");
}

void Program::run(Context& context, size_t first, size_t last, const float* input, int64_t input_size,
                  float* output, int64_t output_size) const {
  check(context);
  require(first <= last && last <= steps_.size(), "steps are out of range");
  require(input_size >= input_needed_, "the input is smaller than the program reads");
  require(output_size >= output_needed_, "the output is smaller than the program writes");
  const Frame frame{&context, input, output};
#pragma omp parallel num_threads(context.threads())
  {
    size_t counter = 0;
    for (size_t s = first; s < last;) {
      const Loop* loop = nullptr;
      for (const Loop& l : loops_)
        if (s >= l.first && s < l.last) loop = &l;
      const size_t end = loop ? std::min(last, loop->last) : s + 1;
      Frame turn = frame;
      for (; turn.turn < (loop ? loop->turns : 1); ++turn.turn, counter += end - s)
        run_steps(turn, s, end, counter);
      s = end;
    }
    // All are past the last barrier. The team may be smaller than was asked for.
    for (int thread = omp_get_thread_num(); thread < context.threads(); thread += omp_get_num_threads())
      context.reset(thread, counter);
  }
}

void Program::run_steps(const Frame& frame, size_t first, size_t last, size_t counter) const {
  const int threads = frame.context->threads();
  const int self = omp_get_thread_num();
  const int team = omp_get_num_threads();  // it may be smaller than was asked for
  float* scratch = frame.context->scratch(self);
  for (size_t s = first; s < last; ++s, ++counter) {
    const NativeStep& step = *steps_[s];
    const int64_t items = step.items(threads);
    // Small items are taken several at a time. Every thread begins with the same share of the items in every
    // step, which then mostly reads and writes lines in this thread's own core. Who is done helps those who
    // are clearly behind; the last items of a share are cheaper where their lines are.
    const int64_t chunk = std::max<int64_t>(1, items / (threads * int64_t{16}));
    for (int helped = 0; helped < threads; ++helped) {
      const int owner = (self + helped) % threads;
      const int64_t begin = items * owner / threads, end = items * (owner + 1) / threads;
      const bool absent = owner >= team, own = helped == 0;
      const int64_t spared = own || absent ? 0 : std::max<int64_t>(1, (end - begin) / kSparedShare);
      std::atomic<int64_t>& taken = frame.context->counter(owner, counter);
      while (begin + taken.load(std::memory_order_relaxed) < end - spared) {
        const int64_t i = begin + taken.fetch_add(chunk, std::memory_order_relaxed);
        for (int64_t j = i; j < std::min(end, i + chunk); ++j) step.run(j, threads, frame, scratch);
      }
    }
#pragma omp barrier
  }
}

}  // namespace finepruning
