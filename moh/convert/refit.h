// One layer's output projection and means anew, so that the heads that run stand in for those that do not.
//
//   rows      Phi = [g_j H_j for every choice j, 1 - g_j, 1]      (without means: the first alone)
//   target    T = sum over all heads of H_i W_i: what the dense layer makes of the same input
//   solution  (Phi^T Phi + L) W = Phi^T T + L W_0,  W_0 = [W_O; m; 0]
//
// m_j, the mean of H_j W_j where j is left out; L: for W_O's rows the mean diagonal of the heads' block times 2 inputs / N
// (the more tokens, the less of it), 0.001 N for the means and the constant.
#pragma once

#include <ATen/core/Tensor.h>

#include "moh/convert/ridge.h"

namespace moh::convert {

struct OutputWeights {
  at::Tensor projection;       // W_O [C, choices * width]
  at::Tensor mean, mean_bias;  // [C, choices], [C]; undefined without means
};

// Means alone, W_O as it was: heads [N, choices, width], gates [N, choices].
OutputWeights mean_outputs(const at::Tensor& heads, const at::Tensor& gates, const at::Tensor& projection);

OutputWeights refit_outputs(const at::Tensor& heads, const at::Tensor& gates, const at::Tensor& projection,
                            bool with_means);

}  // namespace moh::convert
