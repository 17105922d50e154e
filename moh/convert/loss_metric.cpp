#include "moh/convert/loss_metric.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "moh/base/error.h"
#include "moh/ops/autocast.h"

namespace moh::convert {

using at::Tensor;

LossMetric new_metric(const models::LlamaConfig& config, std::int64_t group) {
  LossMetric metric;
  const std::int64_t choices = config.num_attention_heads / group, width = group * config.head_dim;
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    metric.second.push_back(at::zeros({config.hidden_size, config.hidden_size}, at::TensorOptions(at::kFloat)));
    metric.mean.push_back(at::zeros({choices, width}, at::TensorOptions(at::kDouble)));
  }
  return metric;
}

void add_window(LossMetric& metric, const models::Llama& dense, const Calibration& calibration, std::int64_t window,
                std::optional<at::ScalarType> autocast, const std::function<void()>& step) {
  const std::int64_t layers = dense.config().num_hidden_layers;
  const std::int64_t length = window_length(dense.config(), calibration);
  const Tensor ids = window_ids(calibration, length, window);
  std::vector<Tensor> inputs;
  Tensor hidden;
  {
    const c10::NoGradGuard no_grad;
    const ops::Autocast products(autocast);
    hidden = dense.embed(ids.narrow(1, 0, length));
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      step();
      inputs.push_back(hidden);
      hidden = dense.forward({.layers = models::LayerRange{layer, 1, hidden}}).range_hidden;
    }
  }
  step();
  hidden.requires_grad_(true);
  const auto logits = [&] {
    const ops::Autocast products(autocast);
    return dense.logits(dense.final_norm(hidden)).to(at::kFloat);
  };
  const Tensor loss =
      at::cross_entropy_loss(logits().flatten(0, 1), ids.narrow(1, 1, length).flatten(), {}, at::Reduction::Sum);
  Tensor gradient = torch::autograd::grad({loss}, {hidden})[0];
  for (std::int64_t layer = layers - 1; layer >= 0; --layer) {
    step();
    const Tensor input = inputs[layer].requires_grad_(true);
    models::LayerRange range{layer, 1, input, /*heads_only=*/true};
    Tensor heads, hidden_after;
    {
      const ops::Autocast products(autocast);
      const auto output = dense.forward({.layers = range, .keep_heads = true});
      heads = output.heads[0].detach();
      range.heads_only = false;
      range.attended = output.range_hidden;
      hidden_after = dense.forward({.layers = range}).range_hidden;
    }
    const auto gradients = torch::autograd::grad({hidden_after}, {input, range.attended}, {gradient});
    gradient = gradients[0];
    inputs[layer] = Tensor();
    const Tensor moved = gradients[1].squeeze(0).slice(0, 1).to(at::kFloat);
    metric.second[layer] += at::matmul(moved.t(), moved);
    const Tensor& mean = metric.mean[layer];
    metric.mean[layer] += heads.reshape({length, mean.size(0), mean.size(1)}).sum(0, false, at::kDouble);
    MOH_CHECK(metric.second[layer].isfinite().all().item<bool>(), "[convert] the gradients of layer ", layer,
              " are not finite; are there NaNs in the weights?");
  }
  ++metric.windows;
  metric.tokens += length;
  metric.scored += length - 1;
}

namespace {

constexpr std::int64_t kRows = 1024;  // that are worked on at a time

Tensor fisher(const LossMetric& metric, std::int64_t layer, at::ScalarType type) {
  return (metric.second[layer].to(at::kDouble) / static_cast<double>(metric.scored)).to(type);
}

// x_j^T matrix_j x_j for x [N, choices, width] -> [N, choices].
Tensor quadratic(const Tensor& x, const Tensor& matrix) {
  const Tensor by_choice = x.transpose(0, 1);
  return (at::matmul(by_choice, matrix) * by_choice).sum(-1).t();
}

}  // namespace

Tensor head_scores(const LossMetric& metric, std::int64_t layer, const Tensor& heads, const Tensor& projection,
                   bool centred) {
  const auto type = heads.scalar_type();
  const Tensor columns = projection.to(type).reshape({-1, heads.size(1), heads.size(2)}).permute({1, 2, 0});
  const Tensor matrix = at::matmul(at::matmul(columns, fisher(metric, layer, type)), columns.transpose(1, 2));
  const Tensor mean = (metric.mean[layer] / static_cast<double>(metric.tokens)).to(type);
  return quadratic(centred ? heads - mean : heads, matrix).clamp_min(0);
}

Tensor costs_among_others(const LossMetric& metric, std::int64_t layer, const Tensor& heads, const Tensor& gates,
                          const Tensor& projection, const OutputWeights& outputs) {
  const auto type = heads.scalar_type();
  const std::int64_t choices = heads.size(1), width = heads.size(2);
  const Tensor loss = fisher(metric, layer, type), after = outputs.projection.to(type);
  const bool with_means = outputs.mean.defined();
  const Tensor means = with_means ? outputs.mean.to(type) : at::zeros({projection.size(0), choices}, heads.options());
  // v_j = columns_j^T [H_j; 1]
  const Tensor columns = at::cat({after.reshape({-1, choices, width}), -means.unsqueeze(-1)}, -1).permute({1, 2, 0});
  const Tensor matrix = at::matmul(at::matmul(columns, loss), columns.transpose(1, 2));
  std::vector<Tensor> costs;
  for (std::int64_t first = 0; first < heads.size(0); first += kRows) {
    const std::int64_t count = std::min(kRows, heads.size(0) - first);
    const Tensor some = heads.narrow(0, first, count), gate = gates.narrow(0, first, count);
    Tensor left = at::linear(some.flatten(1), projection) - at::linear((some * gate.unsqueeze(-1)).flatten(1), after);
    if (with_means) left -= at::linear(1 - gate, means, outputs.mean_bias.to(type));
    const Tensor with_one = at::cat({some, at::ones({count, choices, 1}, some.options())}, -1);
    const Tensor pulled = at::matmul(at::matmul(left, loss), columns.transpose(1, 2)).transpose(0, 1);  // r^T F v_j's
    const Tensor cross = 2 * (pulled * with_one).sum(-1);
    const Tensor own = quadratic(with_one, matrix);
    costs.push_back(cross + at::where(gate.gt(0), own, -own));
  }
  return at::cat(costs);
}

}  // namespace moh::convert
