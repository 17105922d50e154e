// Aggregated attention of the vision transformers, head-sparse: every token attends to a window of its neighbours and
// to keys pooled from the whole map, in one softmax, with the heads that it selected only (spec, section 2).
//
// For a token n with a query q of one head, q^ = q / |q| (all norms clamped at 1e-12), u = (q^ + e) * temperature *
// s[n]:
//
//   a = softmax([u . k^_j + local_bias_j for the window's tokens j inside the map, u . p^_m + pool_bias[n, m] for all
//   m]) out[n] = gate * (sum_j (a_j + q^ . tokens_j + token_bias_j) v_j + sum_m a_m w_m)
//
// with pooled keys p and values w. Letters as in head_attention.h; N = height * width tokens, row by row; M pooled
// keys; W = window * window places, row by row.
#pragma once

#include <ATen/core/Tensor.h>

namespace moh::ops {

struct AggregatedInputs {
  at::Tensor query, key, value;     // [B, N, H, D]
  at::Tensor pool_key, pool_value;  // [B, M, H, D]
  at::Tensor gates;                 // [B, N, H]
  at::Tensor query_embedding;       // [H, D]: e
  at::Tensor temperature;           // [H]
  at::Tensor position_scale;        // [N]: s, not differentiated
  at::Tensor local_bias;            // [H, W]
  at::Tensor pool_bias;             // [H, N, M]
  at::Tensor tokens;                // [H, D, W]
  at::Tensor token_bias;            // [H, W]
  std::int64_t height = 0, width = 0;
  std::int64_t window = 3;
  at::Tensor rows, first;  // lists of the selection (selection.h); undefined: made from the gates
};

// Returns [B, N, H, D] in query's dtype, exactly zero where the gate is zero. Differentiable in everything but
// position_scale; the gradient of a gate is given where the gate is not zero, as in head_attention.
at::Tensor aggregated_attention(const AggregatedInputs& inputs);

// The composite form, which is the operator's meaning: plain LibTorch operations, every head computed, differentiable
// by LibTorch; here the gradient of every gate is given.
at::Tensor aggregated_attention_composite(const AggregatedInputs& inputs);

}  // namespace moh::ops
