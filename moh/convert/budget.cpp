#include "moh/convert/budget.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "moh/ops/routing.h"

namespace moh::convert {

using at::Tensor;
using models::Llama;
using models::LlamaConfig;

namespace {

// Mean loss a token.
double calibration_loss(const Llama& model, const Calibration& calibration) {
  const c10::NoGradGuard no_grad;
  const std::int64_t length = window_length(model.config(), calibration);
  const std::int64_t windows = window_count(calibration, length);
  double loss = 0;
  for (std::int64_t window = 0; window < windows; ++window) {
    const Tensor ids = window_ids(calibration, length, window).to(model.device());
    const Tensor logits = model.forward({.ids = ids.narrow(1, 0, length)}).logits.flatten(0, 1).to(at::kFloat);
    loss += at::cross_entropy_loss(logits, ids.narrow(1, 1, length).flatten()).item<double>();
  }
  return loss / static_cast<double>(windows);
}

void set_active(LlamaConfig& config, std::int64_t layer, std::int64_t choices, const Division& division) {
  const std::int64_t active = choices * config.heads_per_choice();
  config.moh->shared_heads[layer] = std::clamp<std::int64_t>(division(active), 0, active);
  config.moh->top_k[layer] = active - config.moh->shared_heads[layer];
}

}  // namespace

std::vector<std::int64_t> spend(const std::vector<std::vector<double>>& loss, double activated) {
  const auto layers = static_cast<std::int64_t>(loss.size()), choices = static_cast<std::int64_t>(loss[0].size()) - 1;
  // The least sum over the first layers for every number of choices spent.
  const auto budget = std::clamp<std::int64_t>(std::llround(activated * static_cast<double>(layers * choices)), layers,
                                               layers * choices);
  constexpr double kNever = std::numeric_limits<double>::infinity();
  std::vector<double> least(budget + 1, kNever);
  least[0] = 0;
  std::vector<std::vector<std::int64_t>> taken(layers, std::vector<std::int64_t>(budget + 1, 0));
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    std::vector<double> next(budget + 1, kNever);
    for (std::int64_t spent = 0; spent <= budget; ++spent) {
      for (std::int64_t active = 1; active <= std::min(choices, spent); ++active) {
        const double sum = least[spent - active] + loss[layer][active];
        if (sum < next[spent]) {
          next[spent] = sum;
          taken[layer][spent] = active;
        }
      }
    }
    least = std::move(next);
  }
  std::vector<std::int64_t> result(layers);
  for (std::int64_t layer = layers - 1, spent = budget; layer >= 0; --layer) {
    result[layer] = taken[layer][spent];
    spent -= taken[layer][spent];
  }
  return result;
}

void budget_by_scores(LlamaConfig& config, double activated, const Division& division,
                      const HeadStatistics& statistics) {
  const std::int64_t group = config.heads_per_choice(), choices = config.num_attention_heads / group;
  std::vector<std::vector<double>> loss(config.num_hidden_layers, std::vector<double>(choices + 1, 0.0));
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const Tensor squares = statistics.query_pairs[layer].sum(-1);
    Tensor norms = squares.reshape({squares.size(0), choices, -1}).sum(-1), importance = statistics.importance[layer];
    if (const auto order = models::choice_order(config, layer, norms.device())) {
      norms = norms.index_select(1, order->order);
      importance = importance.index_select(1, order->order);
    }
    const double all = importance.sum(at::kDouble).item<double>();
    for (std::int64_t active = 1; active <= choices; ++active) {
      set_active(config, layer, active, division);
      const std::int64_t shared = config.moh->shared_heads[layer] / group, top_k = config.moh->top_k[layer] / group;
      const Tensor chosen = ops::select_top_k(norms.narrow(1, shared, choices - shared), top_k);
      const Tensor kept = importance.narrow(1, shared, choices - shared).gather(1, chosen);
      loss[layer][active] = (all - kept.sum(at::kDouble).item<double>() -
                             importance.narrow(1, 0, shared).sum(at::kDouble).item<double>()) /
                            static_cast<double>(importance.size(0));
    }
  }
  const auto active = spend(loss, activated);
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    set_active(config, layer, active[layer], division);
  }
}

void budget_by_measurement(Llama& model, double activated, const Division& division, const Calibration& calibration,
                           const std::function<void(double)>& progress) {
  LlamaConfig& config = model.mutable_config();
  const std::int64_t layers = config.num_hidden_layers;
  const std::int64_t choices = config.num_attention_heads / config.heads_per_choice();
  for (std::int64_t layer = 0; layer < layers; ++layer) set_active(config, layer, choices, division);
  const double dense = calibration_loss(model, calibration);
  std::vector<std::vector<double>> rise(layers, std::vector<double>(choices + 1, 0.0));
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    for (std::int64_t active = 1; active < choices; ++active) {
      set_active(config, layer, active, division);
      rise[layer][active] = calibration_loss(model, calibration) - dense;
      if (progress) {
        progress(static_cast<double>(layer * (choices - 1) + active) / static_cast<double>(layers * (choices - 1)));
      }
    }
    set_active(config, layer, choices, division);
  }
  const auto active = spend(rise, activated);
  for (std::int64_t layer = 0; layer < layers; ++layer) set_active(config, layer, active[layer], division);
}

}  // namespace moh::convert
