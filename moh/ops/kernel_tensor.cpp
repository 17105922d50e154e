#include "moh/ops/kernel_tensor.h"

#include <ATen/ATen.h>

namespace moh::ops {

at::Tensor kernel_gates_of(const at::Tensor& gates) { return gates.detach().to(at::kFloat).contiguous(); }

}  // namespace moh::ops
