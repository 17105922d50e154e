// Head-sparse attention on tensors: fused kernels where one can, the composite LibTorch form elsewhere.
//
// Letters used in every shape of this project:
//   B batch, T query tokens, S key tokens, H query heads, Hkv key/value heads, D head size, C hidden size,
//   E routed heads (H - shared), K routed heads that a token activates.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "moh/ops/selection.h"

namespace moh::ops {

// Which keys a query sees and what becomes of its scores.
struct AttentionVariant {
  bool causal = false;                  // token t sees s <= t + S - T
  std::int64_t window = 0;              // > 0, with causal: only the last `window` keys of these
  double soft_cap = 0;                  // > 0: scores become soft_cap * tanh(score / soft_cap), before the bias
  std::optional<at::Tensor> bias = {};  // broadcastable to [B, H, T, S]; -inf hides a key
  std::optional<at::Tensor> sink = {};  // [H]: exp(sink) joins the softmax's sum, without a value
  std::optional<double> scale = {};     // 1/sqrt(D) unless given
};

// out[b,t,h] = gates[b,t,h] * softmax_s(scale * <query[b,t,h], key[b,s,h / (H/Hkv)]> + bias[b,h,t,s]) value[b,s,h /
// (H/Hkv)] (paper, section 3.2; gates multiply the head's output before the output projection).
//
//   query [B, T, H, D]; key, value [B, S, Hkv, D], H a multiple of Hkv; gates [B, T, H].
//   Returns [B, T, H, D] in query's dtype, exactly zero where the gate is zero or no key is visible.
//
// Differentiable in query, key, value, gates, bias and sink. The gradient of a gate is given where the gate is not zero
// and is zero elsewhere: its value there would cost the very head that was skipped.
at::Tensor head_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const Selection& selection, const AttentionVariant& variant);
at::Tensor head_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const at::Tensor& gates, const std::optional<at::Tensor>& bias = std::nullopt,
                          bool causal = false, std::optional<double> scale = std::nullopt);

// The composite form, which is the operator's meaning: plain LibTorch operations on any device and dtype, every head
// computed, differentiable by LibTorch. Here the gradient of every gate is given, also where it is zero.
at::Tensor head_attention_composite(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                    const at::Tensor& gates, const AttentionVariant& variant);
at::Tensor head_attention_composite(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                    const at::Tensor& gates, const std::optional<at::Tensor>& bias = std::nullopt,
                                    bool causal = false, std::optional<double> scale = std::nullopt);

// Sequences of any lengths in one call, their keys and values in the pages of a pool: chunks of prompts beside decoding
// sequences. A sequence's result does not depend on the others, to the bit. On the CPU, without gradients.
//
//   query [R, H, D]: the rows of all sequences; gates [R, H]
//   key, value [P, page, Hkv, D] of any strides: of a pool [P, Hkv, page, 2 D] two views
//   sequences [N, 3] int64: first row, rows, keys; its last row stands at its last key
//   pages [N, most pages of a sequence] int32: key s of sequence n is (pages[n, s / page], s % page)
// Rows that belong to no sequence are zero.
at::Tensor head_attention_paged(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                const Selection& selection, const at::Tensor& sequences, const at::Tensor& pages,
                                const AttentionVariant& variant);

}  // namespace moh::ops
