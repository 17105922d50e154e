#include "tests/kernels/memory/shared_memory.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#include "moh/kernels/gpu/backend.h"
#include "moh/kernels/gpu/driver.h"

namespace {

namespace gpu = moh::kernels::gpu;

// What of the driver the tests alone need; null where the kernels for GPUs do not run.
struct Managed {
  int (*allocate)(std::uint64_t* address, std::size_t bytes, unsigned flags) = nullptr;
  int (*release)(std::uint64_t address) = nullptr;
  int (*wait)() = nullptr;

  Managed() {
    if (!gpu::unavailable_reason().empty()) return;
    void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    allocate = reinterpret_cast<decltype(allocate)>(dlsym(library, "cuMemAllocManaged"));
    release = reinterpret_cast<decltype(release)>(dlsym(library, "cuMemFree_v2"));
    wait = reinterpret_cast<decltype(wait)>(dlsym(library, "cuCtxSynchronize"));
  }
};
const Managed& managed() {
  static const Managed functions;
  return functions;
}

}  // namespace

void* allocate_shared(std::size_t bytes) {
  const std::size_t size = bytes == 0 ? 1 : bytes;
  if (managed().allocate != nullptr) {
    constexpr unsigned kEverywhere = 1;  // CU_MEM_ATTACH_GLOBAL
    gpu::current_device();
    std::uint64_t address = 0;
    gpu::check(managed().allocate(&address, size, kEverywhere), "taking memory that CPU and GPU share");
    return reinterpret_cast<void*>(address);
  }
  void* const memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void free_shared(void* memory) {
  if (managed().release != nullptr) {
    managed().release(reinterpret_cast<std::uint64_t>(memory));
  } else {
    std::free(memory);
  }
}
void wait_for_device() {
  if (managed().wait != nullptr) gpu::check(managed().wait(), "a kernel failed");
}
