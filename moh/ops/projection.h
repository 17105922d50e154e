// Projections between hidden states and heads that skip the heads a token did not select: fused CPU kernels where they
// are faster, LibTorch's dense product elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "moh/ops/selection.h"

namespace moh::ops {

// heads[..., h, :] = W_h x + bias_h where gates[..., h] is not zero, else zero.
//   x [..., C]; weight [H * D, C] (W_Q); bias [H * D]; gates [..., H]. Returns [..., H, D] in x's dtype.
// gates only select: head_attention multiplies by them and gives their gradient. Differentiable in x, weight and bias.
at::Tensor project_heads(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const Selection& selection);
at::Tensor project_heads(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const at::Tensor& gates);

// y = sum of W_h heads[..., h, :] over the heads whose gate is not zero, + bias (paper, section 3.1: the output
// projection in summation form). heads [..., H, D], gated already by head_attention; weight [C, H * D] (W_O); bias [C];
// gates [..., H]. Returns [..., C] in heads' dtype. Differentiable in heads, weight and bias.
at::Tensor combine_heads(const at::Tensor& heads, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const Selection& selection);
at::Tensor combine_heads(const at::Tensor& heads, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         const at::Tensor& gates);

// Whether the two would skip heads here, each token using `share` of them: x [..., C] and heads [..., H, D]. Where not,
// and where the heads in between are zero unless selected, a plain product does the same without masking them again.
bool skips_heads(const at::Tensor& x, std::int64_t head_dim, double share);

}  // namespace moh::ops
