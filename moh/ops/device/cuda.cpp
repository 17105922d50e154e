#include <c10/cuda/CUDAStream.h>

#include "moh/ops/device/stream.h"

namespace moh::ops {

void* current_stream(const at::Tensor& tensor) {
  return tensor.is_cuda() ? c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream() : nullptr;
}

}  // namespace moh::ops
