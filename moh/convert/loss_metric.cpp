#include "moh/convert/loss_metric.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include "moh/base/error.h"

namespace moh::convert {

using at::Tensor;

LossMetric new_metric(const models::LlamaConfig& config, std::int64_t group) {
  LossMetric metric;
  const std::int64_t choices = config.num_attention_heads / group, width = group * config.head_dim;
  const at::TensorOptions options(at::kDouble);
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    metric.second.push_back(at::zeros({choices, width, width}, options));
    metric.mean.push_back(at::zeros({choices, width}, options));
  }
  return metric;
}

void add_window(LossMetric& metric, const models::Llama& dense, const Calibration& calibration,
                const std::function<void()>& step) {
  const std::int64_t layers = dense.config().num_hidden_layers;
  const std::int64_t length = window_length(dense.config(), calibration);
  const Tensor ids = window_ids(calibration, length, metric.windows);
  std::vector<Tensor> inputs;
  Tensor hidden;
  {
    const c10::NoGradGuard no_grad;
    hidden = dense.embed(ids.narrow(1, 0, length));
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      step();
      inputs.push_back(hidden);
      hidden = dense.forward({.layers = models::LayerRange{layer, 1, hidden}}).range_hidden;
    }
  }
  step();
  hidden.requires_grad_(true);
  const Tensor loss = at::cross_entropy_loss(dense.logits(dense.final_norm(hidden)).flatten(0, 1),
                                             ids.narrow(1, 1, length).flatten(), {}, at::Reduction::Sum);
  Tensor gradient = torch::autograd::grad({loss}, {hidden})[0];
  for (std::int64_t layer = layers - 1; layer >= 0; --layer) {
    step();
    const Tensor input = inputs[layer].requires_grad_(true);
    const auto output = dense.forward({.layers = models::LayerRange{layer, 1, input}, .keep_heads = true});
    const auto gradients = torch::autograd::grad({output.range_hidden}, {input, output.heads[0]}, {gradient});
    gradient = gradients[0];
    inputs[layer] = Tensor();
    const std::int64_t choices = metric.mean[layer].size(0), width = metric.mean[layer].size(1);
    const auto by_choice = [&](const Tensor& heads) {  // [choices, T, width]
      return heads.detach().reshape({length, choices, width}).transpose(0, 1);
    };
    const Tensor moved = by_choice(gradients[1]).slice(1, 1);
    metric.second[layer] += at::matmul(moved.transpose(1, 2), moved);
    metric.mean[layer] += by_choice(output.heads[0]).sum(1, /*keepdim=*/false, at::kDouble);
    MOH_CHECK(metric.second[layer].isfinite().all().item<bool>(), "[convert] the gradients of layer ", layer,
              " are not finite; are there NaNs in the weights?");
  }
  ++metric.windows;
  metric.tokens += length;
  metric.scored += length - 1;
}

Tensor head_scores(const LossMetric& metric, std::int64_t layer, const Tensor& heads, bool centred) {
  const Tensor matrix = (metric.second[layer] / static_cast<double>(metric.scored)).to(heads.scalar_type());
  const Tensor mean = (metric.mean[layer] / static_cast<double>(metric.tokens)).to(heads.scalar_type());
  const Tensor moved = (centred ? heads - mean : heads).transpose(0, 1);  // [choices, N, width]
  return (at::matmul(moved, matrix) * moved).sum(-1).clamp_min(0).t();
}

}  // namespace moh::convert
