// Tensors as kernels take them.
#pragma once

#include <ATen/core/Tensor.h>

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

}  // namespace moh::ops
