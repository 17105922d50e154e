// The parts of head_attention behind its operator: checks, and the composite forms of its forward and backward passes.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "moh/ops/head_attention.h"

namespace moh::ops {

void check_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& gates,
                     const AttentionVariant& variant);
double scale_of(const AttentionVariant& variant, const at::Tensor& query);

// As the fused kernels, skipped heads zero: out, and lse [B, T, H].
std::tuple<at::Tensor, at::Tensor> composite_forward(const at::Tensor& query, const at::Tensor& key,
                                                     const at::Tensor& value, const at::Tensor& gates,
                                                     const AttentionVariant& variant);

// Gradients of query, key, value, gates, and of the bias expanded to [B, H, T, S].
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> composite_backward(
    const at::Tensor& grad_out, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& gates, const at::Tensor& lse, const AttentionVariant& variant);

}  // namespace moh::ops
