// The queue of a GPU on which torch's own kernels run at the moment. One function, two sources: cuda.cpp where nvcc and
// a torch with CUDA were found (cmake), none.cpp elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

namespace moh::ops {

// As a cudaStream_t; nullptr for tensors on the CPU.
void* current_stream(const at::Tensor& tensor);

}  // namespace moh::ops
