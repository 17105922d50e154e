// What a dense model's loss loses, to second order, when the output of a layer's attention moves: one pass forward and
// back over the text.
//
//   d_t = d loss / d a(t)     a: the attention's output, behind the output projection
//   F = mean of d d^T         over all tokens but a window's first; the empirical Fisher matrix of a, [C, C]
//   mu_j = mean of H_j        H_j: output of choice j (its heads side by side), W_j: its columns of the projection
//
// Two costs of a token follow. By itself, that of replacing a choice by its mean, all others in their place
// (without means in its place: by nothing):
//   s_j = (H_j - mu_j)^T W_j^T F W_j (H_j - mu_j)
// Among the others, when the choices are gates g and the layer is the converted one, with outputs W', m and c:
//   r = what the dense layer gives - what the converted one gives,  v_j = W'_j H_j - m_j
//   c_j = (cost of the layer without j) - (cost with it), where a layer's cost is its r^T F r; may be negative
//
// Layers go back one at a time from stored inputs of one window, so that memory is that of one layer's graph.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <vector>

#include "moh/convert/calibration.h"
#include "moh/convert/refit.h"
#include "moh/models/llama.h"

namespace moh::convert {

struct LossMetric {
  std::vector<at::Tensor> second;  // per layer: sum of d d^T, fp32 [C, C]
  std::vector<at::Tensor> mean = {};    // per layer: sum of H_j, float64 [choices, width]
  std::int64_t windows = 0, tokens = 0, scored = 0;
};

// Zeros for a model whose heads are chosen in groups of `group`.
LossMetric new_metric(const models::LlamaConfig& config, std::int64_t group);

// Adds a window of the text, whose products are computed in `autocast`. `step` is called before every layer, forward
// and back; what it throws ends the work.
void add_window(LossMetric& metric, const models::Llama& dense, const Calibration& calibration, std::int64_t window,
                std::optional<at::ScalarType> autocast, const std::function<void()>& step);

// s: heads [N, choices, width] of a layer and its projection [C, choices * width] -> [N, choices].
at::Tensor head_scores(const LossMetric& metric, std::int64_t layer, const at::Tensor& heads,
                       const at::Tensor& projection, bool centred);

// c: with gates [N, choices] of 0 and 1 and what they made of the layer.
at::Tensor costs_among_others(const LossMetric& metric, std::int64_t layer, const at::Tensor& heads,
                              const at::Tensor& gates, const at::Tensor& projection, const OutputWeights& outputs);

}  // namespace moh::convert
