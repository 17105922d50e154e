#include "moh/kernels/cuda/device.cuh"

namespace moh::kernels::cuda {

std::int32_t warp_counts[kWarps + 1024];
namespace {
const emulated_cuda::SharedMemory kShared(warp_counts, sizeof(warp_counts));
}

}  // namespace moh::kernels::cuda

#include "moh/kernels/cuda/backend.cu"
