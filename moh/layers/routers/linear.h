// The linear router: one score for every choice from the layer's input, before any query is computed.
//
//   r = W_g x + b          in fp32 (fp64 for fp64 input) whatever the input's type
//   selected               the top_k largest r of the routed choices, or every one with r > threshold; shared ones
//   always gate                   1 where selected; backward is straight-through, as if it were sigmoid(r - threshold)
//   gate, weighted         sigmoid(r - threshold) where selected, 1 for shared ones (threshold 0 where K is fixed)
//
// What a choice that is left out adds on average is a constant vector m_i; a model may hold these:
//   y += sum over choices of (1 - g_i) m_i + c
// Its keys in the object `moh`: linear_keys.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "moh/ops/routing.h"

namespace moh::layers {

struct LinearChoice {
  std::int64_t shared = 0, top_k = 0;
  std::optional<double> threshold = {};  // instead of top_k
  bool weighted = false;
  at::Tensor all_of = {};  // bool [..., 1]: tokens that use every choice, whatever their scores
};

// x [..., C], weight [choices, C], bias [choices] -> r [..., choices].
at::Tensor linear_scores(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

// scores [..., choices], shared ones first. `indices` are [..., top_k], with a threshold [..., 0]; `probabilities` the
// softmax of the routed choices' scores, with a threshold their sigmoid above it. Errors: counts out of range.
ops::Routing route_linear(const at::Tensor& scores, const LinearChoice& choice);

// The means of what is left out: gates [..., choices] -> [..., C]. weight [C, choices], bias [C].
at::Tensor mean_heads(const at::Tensor& gates, const at::Tensor& weight, const at::Tensor& bias);

}  // namespace moh::layers
