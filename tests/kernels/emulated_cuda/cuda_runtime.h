// CUDA on the CPU, as much of it as moh/kernels/cuda uses: under this header the C++ compiler takes the kernels' own
// sources, and tests run them where there is no GPU. Blocks run one after another, the threads of a block in turn, each
// until it has to wait for others. Shared memory and work space hold NaN until they are written; a barrier or a
// shuffle that only some of the threads reach, and more shared memory than was asked for, end the program. What only a
// GPU shows stays unknown: its memory model, its limits, its time.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __shared__  // `extern __shared__` arrays alone: the source that includes this one defines them

enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor };
using cudaStream_t = struct EmulatedStream*;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

extern dim3 threadIdx, blockIdx, blockDim;  // of the thread that runs

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMallocAsync(void** memory, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);

void __syncthreads();
unsigned __ballot_sync(unsigned mask, bool value);
inline int __popc(unsigned value) { return __builtin_popcount(value); }

namespace emulated_cuda {

// The array behind `extern __shared__` of one source.
struct SharedMemory {
  SharedMemory(void* memory, std::size_t bytes);
};

void run(const void* kernel, const cudaLaunchConfig_t& config, const std::function<void()>& thread);
// What lane `source` of the warp offers when all of its lanes have come here.
std::uint32_t exchange(unsigned mask, std::uint32_t offer, int source);
int lane();

}  // namespace emulated_cuda

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4);
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = emulated_cuda::exchange(mask, bits, source % 32);
  std::memcpy(&value, &bits, 4);
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return __shfl_sync(mask, value, emulated_cuda::lane() ^ bits);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
  emulated_cuda::run(reinterpret_cast<const void*>(kernel), *config, [&] { std::apply(kernel, copies); });
  return cudaSuccess;
}
