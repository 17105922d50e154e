// x W^T + b, by whichever of LibTorch's two libraries multiplies faster.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace moh::ops {

enum class Activation { kNone, kGelu, kGeluTanh };

// activation(x W^T + bias): x [..., C], weight [N, C], bias [N]. fp32 on CPUs goes through oneDNN, the activation
// applied while the result is in cache where nothing asks for gradients: on AMD (Zen 4) 1.05 to 1.3 times as fast as
// at::linear, which takes MKL, and the same bits for any number of threads. At few rows (64; with gradients 2,048), or
// in another dtype or on another device: at::linear and at::gelu.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  Activation activation = Activation::kNone);

}  // namespace moh::ops
