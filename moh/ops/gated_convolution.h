// The middle of the vision transformers' gated MLP: GELU(depthwise 3x3 convolution of one half of the channels) times
// the other half (moh/kernels/gated_convolution.h has the formula).
#pragma once

#include <ATen/core/Tensor.h>

namespace moh::ops {

// x [B, N, 2 C] with N = height * width tokens, row by row: the half to convolve, then the gates; weight [C, 1, 3, 3];
// bias [C]. Returns [B, N, C] in x's dtype. Differentiable in x, weight and bias.
at::Tensor gated_convolution(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, std::int64_t height,
                             std::int64_t width);

// The composite form, which is the operator's meaning: plain LibTorch operations on channels-first maps, as the
// authors' code has them.
at::Tensor gated_convolution_composite(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                                       std::int64_t height, std::int64_t width);

}  // namespace moh::ops
