#include <cuda_runtime_api.h>

#include <cstdlib>

#include "moh/base/error.h"
#include "moh/kernels/cuda/backend.h"
#include "tests/kernels/memory/shared_memory.h"

namespace {
bool has_gpu() { return moh::kernels::cuda::unavailable_reason().empty(); }
void check(cudaError_t status, const char* what) {
  MOH_CHECK(status == cudaSuccess, "[tests] ", what, ": ", cudaGetErrorString(status));
}
}  // namespace

void* allocate_shared(std::size_t bytes) {
  void* memory = nullptr;
  if (has_gpu()) {
    check(cudaMallocManaged(&memory, bytes == 0 ? 1 : bytes), "cudaMallocManaged");
  } else {
    memory = std::malloc(bytes == 0 ? 1 : bytes);
  }
  return memory;
}
void free_shared(void* memory) {
  if (has_gpu()) {
    cudaFree(memory);
  } else {
    std::free(memory);
  }
}
void wait_for_device() {
  if (has_gpu()) check(cudaDeviceSynchronize(), "a kernel failed");
}
