// moh bench vit: a whole vision transformer against its dense twin on the same fused kernels, and against the authors'
// form step by step (every head computed, then multiplied by its gate). forward: classification. both: forward, loss
// and gradients of every parameter.
#include "moh/models/vit.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <optional>

#include "bench/common.h"
#include "bench/plain_vit.h"
#include "bench/reference.h"
#include "moh/base/error.h"
#include "moh/eval/image_classification.h"
#include "moh/ops/memory_pool.h"
#include "moh/models/vit_cost.h"
#include "moh/ops/autocast.h"

namespace moh::bench {
namespace {

using at::Tensor;
using models::Vit;

// Weights that every part matters in: routers that tell tokens apart.
Vit make_model(const models::VitConfig& config, std::uint64_t seed) {
  Vit model = Vit::initialize(config, seed);
  const at::Generator generator = at::detail::createCPUGenerator(seed + 1);
  for (auto& [name, tensor] : model.parameters()) {
    if (name.find(".wg") == std::string::npos) continue;
    Tensor(tensor).normal_(0, 1.5 / std::sqrt(static_cast<double>(tensor.size(1))), generator);
  }
  return model;
}

struct Batch {
  Tensor images, labels;
};

// One pass: the logits, or forward and backward; gradients stay with the parameters.
Tensor run(const Vit& model, const Batch& batch, bool training, bool authors_form,
           std::optional<at::ScalarType> autocast) {
  Tensor loss;
  {
    const ops::Autocast scope(autocast);
    Tensor logits;
    std::vector<Tensor> balance_losses;
    if (authors_form) {
      auto output = PlainVit(model).forward(batch.images, training);
      logits = output.logits;
      balance_losses = std::move(output.balance_losses);
    } else {
      auto output = model.forward({.images = batch.images, .training = training});
      logits = output.logits;
      balance_losses = std::move(output.layer_losses);
    }
    if (!training) return logits;
    loss = at::cross_entropy_loss(logits.to(at::kFloat), batch.labels);
    if (!balance_losses.empty()) loss = loss + at::stack(balance_losses).mean() * 0.01;
  }
  loss.backward();
  return loss.detach();
}

void clear_gradients(const Vit& model) {
  for (const auto& [name, parameter] : model.parameters()) Tensor(parameter).mutable_grad() = Tensor();
}

// One picture's logits against the authors' form in fp32, as shares of the largest.
double check_logits(const Vit& model, const Batch& one, const Case& c) {
  const c10::NoGradGuard no_grad;
  const Tensor expected = run(model, one, false, /*authors_form=*/true, std::nullopt);
  const double scale = expected.abs().max().item<double>();
  const Tensor got = run(model, one, false, false, ops::autocast_type(c.dtype));
  // Rounding grows over the layers.
  return check_close(got / scale, expected / scale, 5 * tolerance_of(type_of(c.dtype)), "the MoH-ViT's logits");
}

// The gradient of every parameter for one picture, in fp32.
void check_gradients(const Vit& model, const Batch& one) {
  std::vector<Tensor> ours;
  run(model, one, true, false, std::nullopt);
  for (const auto& [name, parameter] : model.parameters()) ours.push_back(parameter.grad());
  clear_gradients(model);
  run(model, one, true, /*authors_form=*/true, std::nullopt);
  constexpr double kTolerance = 1e-2;  // of each gradient's norm
  double largest = 0;
  for (const auto& [name, parameter] : model.parameters()) {
    if (parameter.grad().defined()) largest = std::max(largest, parameter.grad().norm().item<double>());
  }
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const auto& [name, parameter] = model.parameters()[i];
    MOH_CHECK(ours[i].defined() == parameter.grad().defined(), "[bench] only one side gives `", name, "` a gradient");
    if (!ours[i].defined()) continue;
    const double norm = parameter.grad().norm().item<double>();
    const double error = (ours[i] - parameter.grad()).norm().item<double>();
    // Some are zero in exact arithmetic (a softmax ignores a constant): rounding noise.
    MOH_CHECK(error <= kTolerance * norm + 1e-5 * largest, "[bench] the gradient of `", name,
              "` is wrong and was not timed: its error has norm ", error, ", the reference ", norm);
  }
  clear_gradients(model);
}

// Time of all attention layers (norms excepted: projections, router, pooling, attention), forward alone.
double attention_ms(const Vit& model, std::int64_t batch, std::optional<at::ScalarType> autocast) {
  const c10::NoGradGuard no_grad;
  const models::VitConfig& config = model.config();
  double ms = 0;
  for (std::size_t stage = 0; stage < config.embed_dims.size(); ++stage) {
    const std::int64_t side = config.map_size(stage, config.image_size);
    const auto& place = model.place(stage, {side, side});
    const auto& weights = model.attention(stage, 0);
    const Tensor bias = layers::vit_position_bias(weights, place);
    const Tensor x = at::randn({batch, side * side, config.embed_dims[stage]}, at::TensorOptions(at::kFloat));
    const ops::Autocast scope(autocast);
    ms += static_cast<double>(config.depths[stage]) *
          best_ms([&] { layers::vit_attention(x, weights, place, bias, model.attention_options(stage)); }, 0);
  }
  return ms;
}

}  // namespace

Row run_vit(const Case& given, const Options& options) {
  Case c = given;
  MOH_CHECK(models::is_vit_preset(c.preset) && c.preset.starts_with("moh-"),
            "[bench] --preset must be a MoH vision transformer, got `", c.preset, "`; `moh info` lists them");
  MOH_CHECK(c.direction != "backward", "[bench] vit knows the directions forward and both");
  models::VitConfig config = models::vit_preset(c.preset);
  config.drop_path = 0;  // which blocks run must not be chance
  models::VitConfig dense_config = config;
  dense_config.moh.reset();
  const std::int64_t size = config.image_size;
  c.heads = c.kv_heads = config.num_heads.back();
  c.head_dim = config.embed_dims.back() / config.num_heads.back();
  c.tokens = config.map_size(0, size) * config.map_size(0, size);
  c.causal = "no";
  c.activated = config.activated_share();
  const auto autocast = ops::autocast_type(c.dtype);
  const bool training = c.has_backward(), authors_form = c.rival == "authors_form";

  const ops::MemoryPool pool;  // for both models, as in evaluation and training
  Vit model = make_model(config, options.seed);
  std::optional<Vit> dense;
  if (!authors_form) dense.emplace(make_model(dense_config, options.seed));
  const at::Generator random = at::detail::createCPUGenerator(options.seed);
  const Batch batch = {at::randn({c.batch, 3, size, size}, random, at::TensorOptions(at::kFloat)),
                       at::randint(config.num_classes, {c.batch}, random, at::TensorOptions(at::kLong))};
  const Batch one = {batch.images.narrow(0, 0, 1), batch.labels.narrow(0, 0, 1)};

  Measured measured;
  measured.max_abs_error = check_logits(model, one, c);
  {
    const c10::NoGradGuard no_grad;
    measured.activated = eval::active_share(model.forward({.images = one.images}));
  }
  const c10::AutoGradMode mode(training);
  model.set_requires_grad(training);
  if (dense) dense->set_requires_grad(training);
  if (training) check_gradients(model, one);
  const Vit& rival = dense ? *dense : model;
  const auto side = [&](const Vit& runner, bool form) {
    return [&runner, &batch, training, form, autocast] {
      std::optional<ops::PausedMemoryPool>
          paused;  // the authors' form has LibTorch's own memory, as at its users'
      if (form) paused.emplace();
      run(runner, batch, training, form, autocast);
      if (training) clear_gradients(runner);
    };
  };
  measured.timing = time_pair(side(model, false), side(rival, authors_form), options.seconds, options.pairs);

  // Ideal by FLOPs alone, routers included; both rivals compute every head.
  const auto cost = models::vit_cost(config, size), dense_cost = models::vit_cost(dense_config, size);
  const double passes = static_cast<double>(c.batch) * (training ? 3 : 1);
  measured.work = {{cost.flops * passes, 0}};
  measured.rival_work = {{dense_cost.flops * passes, 0}};
  Row row = make_row("vit", c, options, measured);
  row["preset"] = c.preset;
  row["image_size"] = size;
  row["parameters"] = cost.parameters;
  row["images_per_second"] = 1e3 * static_cast<double>(c.batch) / measured.timing.moh_ms;
  row["rival_images_per_second"] = 1e3 * static_cast<double>(c.batch) / measured.timing.rival_ms;
  // What skipping heads can save at most: query and output projections and attention.
  row["attention_flops_share"] = cost.attention_share;
  if (!training) row["attention_time_share"] = attention_ms(model, c.batch, autocast) / measured.timing.moh_ms;
  return row;
}

}  // namespace moh::bench
