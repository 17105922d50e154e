#include "moh/ops/kernel_tensor.h"

#include <ATen/ATen.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace moh::ops {

at::Tensor kernel_gates_of(const at::Tensor& gates) { return gates.detach().to(at::kFloat).contiguous(); }

at::Tensor kernel_layout_of(const at::Tensor& tensor) {
  if (tensor.is_cpu() || tensor.dim() == 0) return tensor;
  const std::int64_t unit = 16 / static_cast<std::int64_t>(tensor.element_size());
  auto strides = tensor.strides().vec();
  strides.back() = tensor.size(-1) == 1 ? 1 : strides.back();
  bool fits = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % 16 == 0 && strides.back() == 1;
  for (std::int64_t i = 0; i + 1 < tensor.dim(); ++i) {
    if (tensor.size(i) == 1) strides[i] = 0;  // means nothing, and may be any number
    fits = fits && strides[i] % unit == 0;
  }
  if (!fits) return tensor.clone(at::MemoryFormat::Contiguous);
  return strides == tensor.strides() ? tensor : tensor.as_strided(tensor.sizes(), strides);
}

void* current_stream(const at::Tensor& tensor) {
  if (!tensor.is_cuda()) return nullptr;
  return c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(tensor.device()).native_handle();
}

}  // namespace moh::ops
