#include "moh/convert/importance.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "moh/base/activity.h"
#include "moh/base/error.h"

namespace moh::convert {

using at::Tensor;
using models::Llama;
using models::LlamaConfig;

namespace {

Tensor parameter(const Llama& model, const std::string& name) {
  for (const auto& [key, tensor] : model.parameters()) {
    if (key == name) return tensor;
  }
  return {};
}

}  // namespace

HeadStatistics measure_heads(const Llama& dense, const LlamaConfig& config, const Calibration& calibration) {
  // The dense model as a MoH model with every head routed and chosen: its gates are ones, and leaves, because the
  // straight-through gradients of later layers' routers are none of the loss's own.
  LlamaConfig all_routed = config;
  all_routed.moh->router = "norm";
  all_routed.moh->straight_through = layers::StraightThrough::kSelected;
  all_routed.moh->head_order.clear();
  all_routed.moh->shared_heads.assign(config.num_hidden_layers, 0);
  all_routed.moh->top_k.assign(config.num_hidden_layers, config.num_attention_heads);
  io::NamedTensors tensors;
  for (const auto& [name, tensor] : dense.parameters()) tensors.emplace_back(name, tensor.detach().to(at::kFloat));
  const Llama model(all_routed, std::move(tensors));

  const std::int64_t length = window_length(config, calibration), windows = window_count(calibration, length);
  const std::int64_t group = config.heads_per_choice();
  HeadStatistics statistics;
  std::vector<std::vector<Tensor>> importance(config.num_hidden_layers), pairs(config.num_hidden_layers),
      inputs(config.num_hidden_layers);
  for (std::int64_t window = 0; window < windows; ++window) {
    const Tensor ids = window_ids(calibration, length, window).to(model.device());
    const auto output =
        model.forward({.ids = ids.narrow(1, 0, length), .keep_router_inputs = true, .leaf_gates = true});
    const Tensor loss =
        at::cross_entropy_loss(output.logits.flatten(0, 1), ids.narrow(1, 1, length).flatten(), {}, at::Reduction::Sum);
    std::vector<Tensor> gates;
    for (const auto& routing : output.routing) gates.push_back(routing.gates);
    const auto gradients = torch::autograd::grad({loss}, gates);
    report_activity({"measuring the heads", static_cast<double>(window + 1), static_cast<double>(windows), "windows"});
    for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
      const Tensor gradient = gradients[layer].flatten(0, 1);  // [N, H]
      importance[layer].push_back(gradient.reshape({gradient.size(0), -1, group}).sum(-1).square());
      const Tensor halves = output.router_inputs[layer].query.detach().flatten(0, 1).square();
      inputs[layer].push_back(output.router_inputs[layer].input.detach().flatten(0, 1));
      pairs[layer].push_back(halves.unflatten(-1, {2, -1}).sum(-2));
    }
  }
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    statistics.importance.push_back(at::cat(importance[layer]));
    statistics.query_pairs.push_back(at::cat(pairs[layer]));
    statistics.inputs.push_back(at::cat(inputs[layer]));
    MOH_CHECK(statistics.importance.back().isfinite().all().item<bool>(), "[convert] the gradients of layer ", layer,
              " are not finite; are there NaNs in the weights?");
  }
  return statistics;
}

std::vector<std::vector<std::int64_t>> importance_order(const HeadStatistics& statistics,
                                                        std::int64_t heads_per_choice) {
  std::vector<std::vector<std::int64_t>> order;
  for (const Tensor& importance : statistics.importance) {
    const Tensor sorted =
        std::get<1>(
            importance.mean(0, /*keepdim=*/false, at::kDouble).sort(/*stable=*/true, /*dim=*/0, /*descending=*/true))
            .cpu();
    auto& heads = order.emplace_back();
    for (std::int64_t i = 0; i < sorted.numel(); ++i) {
      const std::int64_t first = sorted.const_data_ptr<std::int64_t>()[i] * heads_per_choice;
      for (std::int64_t j = 0; j < heads_per_choice; ++j) heads.push_back(first + j);
    }
  }
  return order;
}

void calibrate_router(Llama& model, const LlamaConfig& config, HeadStatistics& statistics) {
  MOH_CHECK(!config.fused_projections && config.rotary_size() == config.head_dim &&
                config.query_key_norm != models::QueryKeyNorm::kProjection,
            "[convert] query norms of a ", config.model_type, " model cannot be calibrated; use --router two-stage");
  const std::int64_t heads = config.num_attention_heads, kv_heads = config.num_key_value_heads;
  const std::int64_t half = config.head_dim / 2, choices = heads / config.heads_per_choice();
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const Tensor pairs = statistics.query_pairs[layer];
    Tensor target = statistics.importance[layer];
    target = target.clamp_max(50 * target.mean());  // a single token must not decide
    target = target / target.sum();
    Tensor logs = at::zeros({kv_heads, half}, pairs.options().requires_grad(false)).set_requires_grad(true);
    Tensor first = at::zeros_like(logs).detach(), second = first.clone();
    constexpr double kRate = 0.05, kBeta1 = 0.9, kBeta2 = 0.99;
    for (int step = 1; step <= 100; ++step) {                                          // Adam
      const Tensor factors = (2 * logs).exp().repeat_interleave(heads / kv_heads, 0);  // [H, D / 2]
      const Tensor norms =
          (pairs * factors).sum(-1).reshape({pairs.size(0), choices, -1}).sum(-1).clamp_min(1e-20).sqrt();
      const Tensor scores = choices > 2 ? norms / norms.std(-1, true, true).clamp_min(1e-20)
                                        : norms / norms.mean(-1, true).clamp_min(1e-20);
      const Tensor loss = -(target * at::log_softmax(scores, -1)).sum();
      const Tensor gradient = torch::autograd::grad({loss}, {logs})[0];
      const c10::NoGradGuard no_grad;
      first.mul_(kBeta1).add_(gradient, 1 - kBeta1);
      second.mul_(kBeta2).add_(gradient.square(), 1 - kBeta2);
      const Tensor corrected = (second / (1 - std::pow(kBeta2, step))).sqrt() + 1e-8;
      logs.sub_(first / (1 - std::pow(kBeta1, step)) / corrected, kRate);
    }
    const c10::NoGradGuard no_grad;
    statistics.query_pairs[layer] = pairs * (2 * (logs - logs.mean())).exp().repeat_interleave(heads / kv_heads, 0);
    const Tensor factors =
        (logs - logs.mean()).exp().repeat({1, 2}).to(at::kDouble);  // [Hkv, D]: both halves of a pair
    const auto scale_rows = [&](const std::string& name, const Tensor& by_row) {
      Tensor rows = parameter(model, "model.layers." + std::to_string(layer) + ".self_attn." + name);
      if (!rows.defined()) return;  // no bias
      const Tensor column = rows.dim() == 2 ? by_row.unsqueeze(1) : by_row;
      rows.copy_(rows.to(at::kDouble) * column);
    };
    const Tensor query_factors = factors.repeat_interleave(heads / kv_heads, 0).flatten(),
                 key_factors = factors.flatten();
    for (const char* suffix : {".weight", ".bias"}) {
      scale_rows(std::string("q_proj") + suffix, query_factors);
      scale_rows(std::string("k_proj") + suffix, 1 / key_factors);
    }
  }
}

Tensor fit_router(const LlamaConfig& config, std::int64_t layer, const HeadStatistics& statistics) {
  constexpr double kScoreDeviation = 0.1;
  const std::int64_t group = config.heads_per_choice(), choices = config.num_attention_heads / group;
  const std::int64_t shared = config.shared_heads(layer) / group;
  std::vector<std::int64_t> routed;
  for (std::int64_t i = shared; i < choices; ++i) {
    routed.push_back(config.moh->head_order.empty() ? i : config.moh->head_order[layer][i * group] / group);
  }
  const Tensor x = statistics.inputs[layer].to(at::kDouble);
  Tensor target = statistics.importance[layer].to(at::kDouble);
  target = target.index_select(1, at::tensor(routed, at::TensorOptions(at::kLong)).to(target.device()));
  target = (target + 1e-2 * target.mean()).log();
  target = target - target.mean(1, /*keepdim=*/true);
  const Tensor products = at::matmul(x.t(), x);
  const Tensor ridge = at::eye(x.size(1), x.options()) * (1e-3 * products.diagonal().mean());
  const Tensor weight = at::linalg_solve(products + ridge, at::matmul(x.t(), target)).t();  // [E, C]
  const Tensor deviation = at::matmul(x, weight.t()).std(1).mean().clamp_min(1e-12);
  return (weight * (kScoreDeviation / deviation)).to(at::kFloat).contiguous();
}

}  // namespace moh::convert
