#include "moh/kernels/cuda/backend.h"
#include "moh/kernels/cuda/device.cuh"

namespace moh::kernels::cuda {

namespace {

std::string look_for_devices() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    cudaGetLastError();  // the next check must not find it
    return std::string("no CUDA device: ") + (status != cudaSuccess ? cudaGetErrorString(status) : "none was found");
  }
  std::string others;
  for (int device = 0; device < count; ++device) {
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (major == 8 || (major == 9 && minor == 0)) return "";
    others += " sm_" + std::to_string(major) + std::to_string(minor);
  }
  return "the kernels are built for sm_80 and sm_90a, the device is" + others;
}

}  // namespace

std::string unavailable_reason() {
  static const std::string reason = look_for_devices();  // asking the driver for every call would be slow
  return reason;
}

std::string unsupported_reason(const CallTraits& call) {
  if (call.on_cpu) return "the tensors are in CPU memory";
  if (!call.plain) return "unequal sequences, pages, windows, soft caps and sinks have no CUDA kernel";
  if (call.dtype == DType::kFloat64) return "fp64 runs the composite form; the kernels compute in fp32";
  if (call.head_dim > kMaxHeadDim) return "head size " + std::to_string(call.head_dim) + " is above 256";
  return "";
}

// One block a head: the tokens in parts of the block's size, each part placed behind the ones before it.
__global__ void list_rows_kernel(const float* gates, Sizes sizes, std::int32_t* rows, std::int32_t* counts) {
  extern __shared__ std::int32_t warp_counts[];  // [kWarps]
  const std::int64_t b = blockIdx.x / sizes.heads, h = blockIdx.x % sizes.heads;
  std::int32_t* list = rows + static_cast<std::int64_t>(blockIdx.x) * sizes.queries;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  std::int32_t total = 0;
  for (std::int64_t start = 0; start < sizes.queries; start += blockDim.x) {
    const std::int64_t t = start + threadIdx.x;
    const bool chosen = t < sizes.queries && gates[(b * sizes.queries + t) * sizes.heads + h] != 0.0F;
    const unsigned ballot = __ballot_sync(0xffffffffu, chosen);
    if (lane == 0) warp_counts[warp] = __popc(ballot);
    __syncthreads();
    std::int32_t before = 0, all = 0;
    for (int i = 0; i < kWarps; ++i) {
      if (i < warp) before += warp_counts[i];
      all += warp_counts[i];
    }
    if (chosen) list[total + before + __popc(ballot & ((1u << lane) - 1))] = static_cast<std::int32_t>(t);
    total += all;
    __syncthreads();
  }
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

void list_rows(const float* gates, const Sizes& sizes, std::int32_t* rows, std::int32_t* counts, cudaStream_t stream) {
  launch(list_rows_kernel, static_cast<unsigned>(sizes.batch * sizes.heads), kWarps * kWarp,
         sizeof(std::int32_t) * kWarps, stream, gates, sizes, rows, counts);
}

}  // namespace moh::kernels::cuda
