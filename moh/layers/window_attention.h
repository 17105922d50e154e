// Head-sparse causal attention in which a token sees only the last `window` tokens, itself included.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace moh::layers {

using HeadAttention = at::Tensor (*)(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                     const at::Tensor& gates, const std::optional<at::Tensor>& bias, bool causal,
                                     std::optional<double> scale);

// Shapes as ops::head_attention; bias [B or 1, H or 1, 1, S] over keys (padding), or none. `attention` is
// ops::head_attention or its composite form. The kernels know no window, so the queries go in blocks, each with the
// keys that it can reach and, where those differ within the block, a bias of -inf: time and memory are O(T * window).
at::Tensor window_attention(HeadAttention attention, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, const at::Tensor& gates, const std::optional<at::Tensor>& bias,
                            std::int64_t window);

}  // namespace moh::layers
