// The middle of the gated MLP of the vision transformers: a depthwise 3x3 convolution of one half of the channels,
// GELU, and the product with the other half. For token n = y * width + x of a map of height x width tokens and channel
// c, with a = input[n, c] and b = input[n, C + c]:
//
//   z[n]   = bias + sum over the 3x3 places (i, j) of weight[i, j] * a[y + i - 1, x + j - 1]     zeros outside the map
//   out[n] = z Phi(z) b[n]                                                     Phi: the normal distribution's function
//
// By LibTorch's operations that is two copies into another layout, a convolution and two passes over what comes out of
// it; here the input is read once and the output written once. Letters: B batch, N = height * width, C channels of a
// half.
#pragma once

#include <cstdint>

#include "moh/kernels/dtype.h"
#include "moh/kernels/parallel.h"

namespace moh::kernels {

struct GatedConvolutionParams {
  std::int64_t batch = 0, height = 0, width = 0, channels = 0;  // channels: C
  DType dtype = DType::kFloat32;                                // of input, out and their gradients; all contiguous
  const void* input = nullptr;                                  // [B, N, 2 C]
  const float* weight = nullptr;                                // [9, C], places row by row
  const float* bias = nullptr;                                  // [C]
  void* out = nullptr;                                          // [B, N, C]; forward

  // backward only; every element is written
  const void* grad_out = nullptr;  // [B, N, C]
  void* grad_input = nullptr;      // [B, N, 2 C]
  float* grad_weight = nullptr;    // [9, C]
  float* grad_bias = nullptr;      // [C]

  Parallel parallel = {};

  std::int64_t map() const { return height * width; }
};

}  // namespace moh::kernels
