// Head-sparse attention on tensors: fused kernels where one can, the composite LibTorch form elsewhere.
//
// Letters used in every shape of this project:
//   B batch, T query tokens, S key tokens, H query heads, Hkv key/value heads, D head size, C hidden size,
//   E routed heads (H - shared), K routed heads that a token activates.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace moh::ops {

// out[b,t,h] = gates[b,t,h] * softmax_s(scale * <query[b,t,h], key[b,s,h / (H/Hkv)]> + bias[b,h,t,s]) value[b,s,h /
// (H/Hkv)] (paper, section 3.2; gates multiply the head's output before the output projection).
//
//   query [B, T, H, D]; key, value [B, S, Hkv, D], H a multiple of Hkv; gates [B, T, H]; bias broadcastable to
//   [B, H, T, S] (-inf hides a key); causal: token t sees s <= t + S - T; scale: 1/sqrt(D) unless given.
//   Returns [B, T, H, D] in query's dtype, exactly zero where the gate is zero or no key is visible.
//
// Differentiable in query, key, value, gates and bias. The gradient of a gate is given where the gate is not zero and
// is zero elsewhere: its value there would cost the very head that was skipped.
at::Tensor head_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const at::Tensor& gates, const std::optional<at::Tensor>& bias = std::nullopt,
                          bool causal = false, std::optional<double> scale = std::nullopt);

// The composite form, which is the operator's meaning: plain LibTorch operations on any device and dtype, every head
// computed, differentiable by LibTorch. Here the gradient of every gate is given, also where it is zero.
at::Tensor head_attention_composite(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                    const at::Tensor& gates, const std::optional<at::Tensor>& bias = std::nullopt,
                                    bool causal = false, std::optional<double> scale = std::nullopt);

}  // namespace moh::ops
