#include "program.hpp"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace finepruning {
namespace {

constexpr int64_t kMaxFloats = int64_t{1} << 40;
constexpr size_t kHugePage = size_t{2} << 20;

void require(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(message);
}

}  // namespace

Context::Context(int64_t arena_floats, int64_t scratch_floats, int threads, size_t steps)
    : arena_floats_(arena_floats),
      scratch_floats_(scratch_floats),
      floats_(arena_floats + scratch_floats * threads),
      threads_(threads),
      steps_(steps),
      counters_(new std::atomic<int64_t>[steps + 1]) {
  // A tile of a large map touches more pages of 4 KiB than the address cache holds.
  const size_t wanted = static_cast<size_t>(floats_) * 4 + 64;
  const size_t page = wanted >= kHugePage ? kHugePage : 4096;
  const size_t bytes = (wanted + page - 1) / page * page;
  memory_ = static_cast<float*>(std::aligned_alloc(page, bytes));
  if (memory_ == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (page == kHugePage) madvise(memory_, bytes, MADV_HUGEPAGE);  // only advice: without it all works, slower
#endif
}

Context::~Context() { std::free(memory_); }

Program::Program(int64_t arena_floats) : arena_floats_((arena_floats + 15) / 16 * 16) {
  require(arena_floats >= 0 && arena_floats <= kMaxFloats, "arena size is out of range");
}

int Program::add_buffer(Buffer::Kind kind, int64_t offset, int64_t size) {
  require(offset >= 0 && size >= 0 && offset <= kMaxFloats && size <= kMaxFloats, "buffer is out of range");
  if (kind == Buffer::kArena) {
    require(offset % kLanes == 0, "buffer offsets must be multiples of 16 floats");
    require(offset + size <= arena_floats_, "buffer does not fit into the arena");
  } else if (kind == Buffer::kInput) {
    input_needed_ = std::max(input_needed_, offset + size);
  } else {
    output_needed_ = std::max(output_needed_, offset + size);
  }
  buffers_.push_back({kind, offset, size});
  return static_cast<int>(buffers_.size()) - 1;
}

const Buffer& Program::buffer(int id, int64_t needed) const {
  require(id >= 0 && static_cast<size_t>(id) < buffers_.size(), "no such buffer");
  require(needed >= 0 && needed <= buffers_[id].size, "a step does not fit its buffer");
  return buffers_[id];
}

int64_t Program::scratch_floats() const {
  int64_t floats = 0;
  for (const auto& step : steps_) floats = std::max(floats, step->scratch_floats());
  return (floats + 1023) / 1024 * 1024 + 256;  // the odd 1 KiB keeps threads' scratch off the same sets
}

int64_t Program::context_bytes(int threads) const {
  return (arena_floats_ + scratch_floats() * std::max(threads, 1)) * 4;
}

std::shared_ptr<Context> Program::acquire(int threads) {
  require(threads >= 1 && threads <= 4096, "threads must lie in [1, 4096]");
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < idle_.size(); ++i)
      if (idle_[i]->threads() == threads && idle_[i]->fits(arena_floats_, scratch_floats(), steps_.size())) {
        auto context = std::move(idle_[i]);
        idle_.erase(idle_.begin() + static_cast<ptrdiff_t>(i));
        return context;
      }
    idle_.clear();  // left from another number of threads
  }
  return std::make_shared<Context>(arena_floats_, scratch_floats(), threads, steps_.size());
}

void Program::release(std::shared_ptr<Context> context) {
  std::lock_guard<std::mutex> lock(mutex_);
  idle_.push_back(std::move(context));
}

void Program::check(const Context& context) const {
  require(context.fits(arena_floats_, scratch_floats(), steps_.size()),
          "the context is too small: it was acquired from another program");
}

void Program::run(Context& context, size_t first, size_t last, const float* input, int64_t input_size,
                  float* output, int64_t output_size) const {
  check(context);
  require(first <= last && last <= steps_.size(), "steps are out of range");
  require(input_size >= input_needed_, "the input is smaller than the program reads");
  require(output_size >= output_needed_, "the output is smaller than the program writes");
  const Frame frame{&context, input, output};
  for (size_t s = first; s < last; ++s) context.counter(s).store(0, std::memory_order_relaxed);
  const int threads = context.threads();
#pragma omp parallel num_threads(threads)
  {
    float* scratch = context.scratch(omp_get_thread_num());
    for (size_t s = first; s < last; ++s) {
      const NativeStep& step = *steps_[s];
      const int64_t items = step.items(threads);
      std::atomic<int64_t>& counter = context.counter(s);
      // Small items are taken several at a time; the counter is shared by all threads.
      const int64_t chunk = std::max<int64_t>(1, items / (threads * int64_t{16}));
      for (int64_t i; (i = counter.fetch_add(chunk, std::memory_order_relaxed)) < items;)
        for (int64_t j = i; j < std::min(items, i + chunk); ++j) step.run(j, threads, frame, scratch);
#pragma omp barrier
    }
  }
}

}  // namespace finepruning
