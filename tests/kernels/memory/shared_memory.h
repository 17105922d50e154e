// Memory that kernels of every backend can read and write: plain memory, or, where kernels for GPUs are built and a GPU
// is there, memory that CPU and GPU share. So one test serves all backends.
#pragma once

#include <cstddef>
#include <vector>

void* allocate_shared(std::size_t bytes);
void free_shared(void* memory);
// Kernels of a GPU return before they are done: waits for them. An error of theirs is an Error here.
void wait_for_device();

template <class T>
struct SharedAllocator {
  using value_type = T;
  SharedAllocator() = default;
  template <class U>
  SharedAllocator(const SharedAllocator<U>&) {}
  T* allocate(std::size_t count) { return static_cast<T*>(allocate_shared(count * sizeof(T))); }
  void deallocate(T* memory, std::size_t) { free_shared(memory); }
  template <class U>
  bool operator==(const SharedAllocator<U>&) const {
    return true;
  }
};

template <class T>
using SharedVector = std::vector<T, SharedAllocator<T>>;
