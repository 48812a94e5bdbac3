// The part of GCC's OpenMP run time that the extension uses, on std::thread: ThreadSanitizer sees what it
// synchronizes, where the real library, which is not instrumented, would leave every barrier looking like a
// race.
#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace {

struct Team {
  std::mutex mutex;
  std::condition_variable changed;
  unsigned size = 1, waiting = 0, turn = 0;

  void barrier() {
    std::unique_lock<std::mutex> lock(mutex);
    if (++waiting == size) {
      waiting = 0;
      ++turn;
      changed.notify_all();
      return;
    }
    changed.wait(lock, [this, now = turn] { return turn != now; });
  }
};

thread_local Team* team = nullptr;
thread_local int number = 0;

}  // namespace

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  Team mine;
  mine.size = std::max(threads, 1u);
  const auto work = [&](unsigned index) {
    team = &mine;
    number = static_cast<int>(index);
    body(data);
    team = nullptr;
    number = 0;
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < mine.size; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& other : others) other.join();
}

void GOMP_barrier() {
  if (team != nullptr) team->barrier();
}

int omp_get_thread_num() { return number; }

int omp_get_num_threads() { return team != nullptr ? static_cast<int>(team->size) : 1; }
}
