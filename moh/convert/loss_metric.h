// What a dense model's loss loses, to second order, when a head's output moves: one pass forward and back over the
// text.
//
//   u_t = d loss / d H_j(t)        H_j: output of choice j (its heads side by side), before the output projection
//   A_j = mean of u u^T            over all tokens but a window's first; the empirical Fisher matrix of H_j
//   m_j = mean of H_j
//   score of a token: (H_j - m_j)^T A_j (H_j - m_j), what replacing the choice by its mean costs; without means in its
//   place H_j^T A_j H_j
//
// Layers go back one at a time from stored inputs of one window, so that memory is that of one layer's graph.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "moh/convert/calibration.h"
#include "moh/models/llama.h"

namespace moh::convert {

struct LossMetric {
  std::vector<at::Tensor> second;  // per layer: sum of u u^T, float64 [choices, width, width]
  std::vector<at::Tensor> mean;    // per layer: sum of H_j, float64 [choices, width]
  std::int64_t windows = 0, tokens = 0, scored = 0;
};

// Zeros for a model whose heads are chosen in groups of `group`.
LossMetric new_metric(const models::LlamaConfig& config, std::int64_t group);

// Adds the next window of the text. `step` is called before every layer, forward and back; what it throws ends the
// work.
void add_window(LossMetric& metric, const models::Llama& dense, const Calibration& calibration,
                const std::function<void()>& step);

// heads [N, choices, width] of a layer -> [N, choices].
at::Tensor head_scores(const LossMetric& metric, std::int64_t layer, const at::Tensor& heads, bool centred);

}  // namespace moh::convert
