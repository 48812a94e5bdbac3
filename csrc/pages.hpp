// Memory in huge pages: maps and weights that are read from end to end touch more pages of 4 KiB than the
// processor keeps addresses of, and on a virtual machine each one missing is looked up twice.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace finepruning {

inline constexpr size_t kHugePage = size_t{2} << 20;

// Aligned to cache lines, and to huge pages where it fills one; to be freed with std::free.
inline void* allocate_pages(size_t bytes) {
  const size_t huge = bytes / kHugePage * kHugePage;  // the rest stays in small pages, or it would waste one
  const size_t alignment = huge > 0 ? kHugePage : 64;
  void* memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (huge > 0) madvise(memory, huge, MADV_HUGEPAGE);  // only advice: without it all works, slower
#endif
  return memory;
}

template <class T>
struct PageAllocator {
  using value_type = T;
  PageAllocator() = default;
  template <class Other>
  PageAllocator(const PageAllocator<Other>&) {}
  T* allocate(size_t n) { return static_cast<T*>(allocate_pages(n * sizeof(T))); }
  void deallocate(T* memory, size_t) { std::free(memory); }
  friend bool operator==(const PageAllocator&, const PageAllocator&) { return true; }
  friend bool operator!=(const PageAllocator&, const PageAllocator&) { return false; }
};

template <class T>
using PageVector = std::vector<T, PageAllocator<T>>;

}  // namespace finepruning
