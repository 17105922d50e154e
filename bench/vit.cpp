// moh bench vit: a whole vision transformer against its dense twin on the same fused kernels, and against the authors'
// form step by step (every head computed, then multiplied by its gate).
#include "moh/models/vit.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "bench/bench.h"
#include "bench/timing.h"
#include "moh/base/error.h"
#include "moh/eval/image_classification.h"
#include "moh/models/vit_cost.h"
#include "moh/ops/autocast.h"

namespace moh::bench {
namespace {

using at::Tensor;

// Weights that every part matters in: routers that tell tokens apart, biases that are not zero.
models::Vit make_model(const models::VitConfig& config, std::uint64_t seed) {
  models::Vit model = models::Vit::initialize(config, seed);
  const at::Generator generator = at::detail::createCPUGenerator(seed + 1);
  for (auto& [name, tensor] : model.parameters()) {
    if (name.find(".wg") == std::string::npos) continue;
    tensor.normal_(0, 1.5 / std::sqrt(static_cast<double>(tensor.size(1))), generator);
  }
  return model;
}

void run(const models::Vit& model, const Tensor& images, const Tensor& labels, bool training, bool authors_form,
         std::optional<at::ScalarType> autocast) {
  const ops::Autocast scope(autocast);
  const auto output = model.forward({.images = images, .training = training, .authors_form = authors_form});
  if (!training) return;
  Tensor loss = at::cross_entropy_loss(output.logits.to(at::kFloat), labels);
  if (output.load_balance_loss.defined()) loss = loss + output.load_balance_loss * 0.01;
  loss.backward();
  for (const auto& [name, parameter] : model.parameters()) parameter.mutable_grad() = Tensor();
}

}  // namespace

Json run_vit(const Case& c, const Options& options) {
  MOH_CHECK(models::is_vit_preset(c.preset), "[bench] ", c.preset, " is not a vision transformer");
  models::VitConfig config = models::vit_preset(c.preset);
  config.drop_path = 0;
  MOH_CHECK(config.moh, "[bench] preset ", c.preset, " is dense; name a moh-vit- preset");
  MOH_CHECK(c.direction != "backward", "[bench] vit knows the directions forward and both");
  const std::int64_t size = config.image_size;
  models::VitConfig dense_config = config;
  dense_config.moh.reset();
  models::Vit model = make_model(config, options.seed);
  std::optional<models::Vit> dense;
  if (c.rival == "dense_twin") dense.emplace(make_model(dense_config, options.seed));
  const at::Generator generator = at::detail::createCPUGenerator(options.seed);
  const Tensor images = at::empty({c.batch, 3, size, size}, at::TensorOptions(at::kFloat)).normal_(0, 1, generator);
  const Tensor labels = at::zeros({c.batch}, at::TensorOptions(at::kLong));
  const auto autocast = ops::autocast_type(c.dtype);
  const bool training = c.has_backward();

  double error = 0, activated = 0;
  {
    const c10::NoGradGuard no_grad;
    const Tensor one = images.narrow(0, 0, 1);
    const auto ours = model.forward({.images = one});
    activated = eval::active_share(ours);
    error = (ours.logits - model.forward({.images = one, .authors_form = true}).logits).abs().max().item<double>();
    MOH_CHECK(error <= 1e-3, "[bench] the result is wrong by ", error);
  }
  const c10::AutoGradMode mode(training);
  model.set_requires_grad(training);
  if (dense) dense->set_requires_grad(training);
  const Timing timing = time_pair([&] { run(model, images, labels, training, false, autocast); },
                                  [&] { run(dense ? *dense : model, images, labels, training, !dense, autocast); },
                                  options.seconds, options.pairs);
  const auto cost = models::vit_cost(config, size);
  Json row = Json::object();
  row["subject"] = "vit";
  row["preset"] = c.preset;
  row["direction"] = c.direction;
  row["dtype"] = c.dtype;
  row["batch"] = c.batch;
  row["tokens"] = config.map_size(0, size) * config.map_size(0, size);
  row["heads"] = config.num_heads.back();
  row["kv_heads"] = config.num_heads.back();
  row["head_dim"] = config.embed_dims.back() / config.num_heads.back();
  row["image_size"] = size;
  row["activated"] = activated;
  row["threads"] = at::get_num_threads();
  row["moh_ms"] = timing.moh_ms;
  row["images_per_second"] = 1000.0 * static_cast<double>(c.batch) / timing.moh_ms;
  row["rival"] = c.rival;
  row["rival_ms"] = timing.rival_ms;
  row["ratio"] = timing.ratio;
  row["ratio_low"] = timing.ratio_low;
  row["ratio_high"] = timing.ratio_high;
  row["pairs"] = timing.pairs;
  // By FLOPs alone, routers included; both rivals compute every head.
  row["ideal_ratio"] = cost.flops / cost.dense_flops;
  row["gflops"] = cost.flops * static_cast<double>(c.batch) * (training ? 3 : 1) / (timing.moh_ms * 1e6);
  row["max_abs_error"] = error;
  return row;
}

}  // namespace moh::bench
