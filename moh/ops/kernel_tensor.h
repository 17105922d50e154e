// Tensors as kernels take them.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <optional>

#include "moh/kernels/dtype.h"
#include "moh/kernels/strided.h"

namespace moh::ops {

inline kernels::DType kernel_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return kernels::DType::kFloat32;
    case at::kBFloat16:
      return kernels::DType::kBFloat16;
    case at::kHalf:
      return kernels::DType::kFloat16;
    default:
      return kernels::DType::kFloat64;
  }
}

template <int dimensions>
void fill(kernels::Strided<const void*, dimensions>& target, const at::Tensor& tensor) {
  target.data = tensor.const_data_ptr();
  for (int i = 0; i < dimensions; ++i) target.stride[i] = tensor.stride(i);
}

template <int dimensions>
void fill(kernels::Strided<void*, dimensions>& target, const at::Tensor& tensor) {
  target.data = tensor.mutable_data_ptr();
  for (int i = 0; i < dimensions; ++i) target.stride[i] = tensor.stride(i);
}

// Nothing for an undefined tensor.
inline std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

// Contiguous fp32, without gradient.
at::Tensor kernel_gates_of(const at::Tensor& gates);

// The tensor as kernels of its device read it: those of a GPU want rows that begin at multiples of 16 bytes and are
// dense in the last axis. A copy where it lies otherwise.
at::Tensor kernel_layout_of(const at::Tensor& tensor);

// While it lives, the GPU of the tensor is the current one.
inline c10::OptionalDeviceGuard on_device_of(const at::Tensor& tensor) {
  return c10::OptionalDeviceGuard(tensor.is_cuda() ? std::optional(tensor.device()) : std::nullopt);
}

// The queue of a GPU (a CUstream) on which torch's own kernels run at the moment; nullptr for tensors on the CPU.
void* current_stream(const at::Tensor& tensor);

}  // namespace moh::ops
