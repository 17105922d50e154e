// Included before a source of moh/kernels/cuda: the memory behind its `extern __shared__ float shared[]`.
#pragma once

#include "moh/kernels/cuda/device.cuh"

namespace moh::kernels::cuda {
namespace {

float shared[163 * 1024 / sizeof(float)];  // the most that a block gets on sm_80
const emulated_cuda::SharedMemory kShared(shared, sizeof(shared));

}  // namespace
}  // namespace moh::kernels::cuda
