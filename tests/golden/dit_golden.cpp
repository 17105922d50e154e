// Golden files of MoH-DiT.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "moh/diffusion/gaussian.h"
#include "moh/layers/moh_attention.h"
#include "moh/models/dit.h"
#include "moh/ops/head_attention.h"
#include "moh/train/ema.h"
#include "moh/train/optimizer.h"
#include "tests/golden/golden_file.h"

namespace moh::golden {
namespace {

constexpr double kScheduleRtol = 1e-12;  // float64

void check_dit_attention(const GoldenFile& file) {
  auto leaves = leaf_parameters(file);
  Tensor x = file["in.x"].clone().set_requires_grad(true);
  const std::int64_t heads = file.number("heads"), shared = file.number("shared"), top_k = file.number("k");
  const auto linear = [&](const std::string& name) {
    return layers::Linear(leaves.at(name + ".weight"), optionally(leaves, name + ".bias"));
  };
  const layers::MohAttentionWeights weights{linear("qkv"), linear("proj"), optionally(leaves, "wg.weight"),
                                            optionally(leaves, "wg_1.weight"), optionally(leaves, "wg_0.weight")};
  const auto output = layers::moh_attention(x, weights, {heads, shared, top_k});
  expect_close(file, "out.y", output.y, kLayerAtol);
  expect_close(file, "gate.final", output.routing.gates, kLayerAtol);
  if (file.has("gate.topk")) expect_same_sets(file, "gate.topk", output.routing.indices);
  if (file.has("gate.routed_probs")) expect_close(file, "gate.routed_probs", output.routing.probabilities, kLayerAtol);
  if (file.has("gate.head_out")) {
    const c10::NoGradGuard no_grad;
    const Tensor qkv = weights.qkv(x).reshape({x.size(0), x.size(1), 3, heads, -1});
    const Tensor ones = at::ones_like(output.routing.gates);
    expect_close(file, "gate.head_out", ops::head_attention(qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), ones),
                 kLayerAtol);
  }
  Tensor total = (output.y * file["rand.target"]).sum();
  if (file.has("out.aux_loss")) {
    expect_close(file, "out.aux_loss", output.load_balance_loss, kLayerAtol);
    total = total + output.load_balance_loss;
  }
  expect_close(file, "out.total", total, kModelAtol);
  total.backward();
  expect_gradients(file, leaves, x, "grad.");
}

// The schedule and one step back or one loss, with the network's output given.
void check_schedule(const GoldenFile& file, const std::string& prefix, const diffusion::Schedule& schedule) {
  expect_exact(file, prefix + "timestep_map", at::tensor(schedule.timestep_map, at::kLong));
  const std::map<std::string, const std::vector<double>*> values = {
      {"betas", &schedule.betas},
      {"alphas_cumprod", &schedule.alphas_cumprod},
      {"alphas_cumprod_prev", &schedule.alphas_cumprod_prev},
      {"sqrt_alphas_cumprod", &schedule.sqrt_alphas_cumprod},
      {"sqrt_one_minus_alphas_cumprod", &schedule.sqrt_one_minus_alphas_cumprod},
      {"sqrt_recip_alphas_cumprod", &schedule.sqrt_recip_alphas_cumprod},
      {"sqrt_recipm1_alphas_cumprod", &schedule.sqrt_recipm1_alphas_cumprod},
      {"posterior_variance", &schedule.posterior_variance},
      {"posterior_log_variance_clipped", &schedule.posterior_log_variance_clipped},
      {"posterior_mean_coef1", &schedule.posterior_mean_coef1},
      {"posterior_mean_coef2", &schedule.posterior_mean_coef2}};
  for (const auto& [name, value] : values) {
    expect_close(file, prefix + name, at::tensor(*value, at::kDouble), 0, kScheduleRtol);
  }
}

void check_steps(const GoldenFile& file, const diffusion::Schedule& schedule, bool clip) {
  const std::string prefix = clip ? "step.clip." : "step.";
  const Tensor output = file["step.model_output"], x = file["step.x"], noise = file["step.noise"], t = file["step.t"];
  const auto prediction = diffusion::predict(schedule, output, x, t, clip);
  expect_close(file, prefix + "mean", prediction.mean, kLayerAtol);
  expect_close(file, prefix + "log_variance", prediction.log_variance, kLayerAtol);
  expect_close(file, prefix + "pred_xstart", prediction.x_start, kLayerAtol);
  expect_close(file, prefix + "p_sample", diffusion::ancestral_step(schedule, output, x, t, noise, clip), kLayerAtol);
  for (const auto& [name, expected] : file.tensors) {  // ddim_sample_eta0.5 and so on
    const std::string start = prefix + "ddim_sample_eta";
    if (!name.starts_with(start)) continue;
    const double eta = std::stod(name.substr(start.size()));
    expect_close(file, name, diffusion::ddim_step(schedule, output, x, t, noise, eta, clip), kLayerAtol);
  }
}

void check_dit_diffusion(const GoldenFile& file) {
  const auto full = diffusion::linear_schedule();
  const auto spaced = diffusion::respaced(full, file.config.at("respacing").get<std::string>());
  check_schedule(file, "full.", full);
  check_schedule(file, "spaced.", spaced);
  if (file.has("step.t_seen_by_network")) {
    const Tensor map = at::tensor(spaced.timestep_map, at::kLong);
    expect_exact(file, "step.t_seen_by_network", map.index_select(0, file["step.t"]));
  }
  check_steps(file, spaced, false);
  if (file.has("step.clip.mean")) check_steps(file, spaced, true);
  const Tensor x_start = file["loss.x_start"], t = file["loss.t"], noise = file["loss.noise"];
  const Tensor x_t = diffusion::add_noise(full, x_start, t, noise);
  expect_close(file, "loss.x_t", x_t, kLayerAtol);
  const auto terms = diffusion::training_loss(full, file["step.model_output"], x_start, x_t, t, noise);
  expect_close(file, "loss.mse", terms.mse, kLayerAtol);
  expect_close(file, "loss.vb", terms.vb, kLayerAtol);
  expect_close(file, "loss.loss", terms.loss, kLayerAtol);
}

// config.json of the model that the file's metadata describes in the authors' words.
models::DitConfig dit_config(const GoldenFile& file) {
  Json json = Json::object();
  for (const char* key : {"input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_classes", "num_heads",
                          "head_dim", "mlp_ratio", "learn_sigma"}) {
    if (file.config.contains(key) && !file.config.at(key).is_null()) json[key] = file.config.at(key);
  }
  if (!json.contains("head_dim")) {
    const Json& heads = json.at("num_heads");
    json["head_dim"] =
        json.at("hidden_size").get<std::int64_t>() / (heads.is_array() ? heads.at(0) : heads).get<std::int64_t>();
  }
  if (file.config.value("moh", true)) {
    json["moh"] = {{"shared_heads", file.config.at("shared_head")}, {"top_k", file.config.at("routed_head")}};
  }
  return models::parse_dit_config(json, file.path);
}

io::NamedTensors cloned_parameters(const GoldenFile& file) {
  io::NamedTensors tensors;
  for (const auto& [name, tensor] : file.tensors) {
    if (name.starts_with("param.")) tensors.emplace_back(name.substr(6), tensor.clone());
  }
  return tensors;
}

void check_gates(const GoldenFile& file, const std::string& prefix, const models::DitOutput& output) {
  for (std::size_t i = 0; i < output.routing.size(); ++i) {
    const std::string name = prefix + "blocks." + std::to_string(i) + ".attn";
    if (file.has(name)) expect_close(file, name, output.routing[i].gates, kModelAtol);
  }
}

struct TrainingLoss {
  models::DitOutput output;
  diffusion::LossTerms terms;
  Tensor moh_loss, total;
};

TrainingLoss dit_training_loss(const GoldenFile& file, const models::Dit& model, const diffusion::Schedule& schedule) {
  const Tensor x_start = file["train.x_start"], t = file["train.t"], noise = file["train.noise"];
  const Tensor x_t = diffusion::add_noise(schedule, x_start, t, noise);
  TrainingLoss loss;
  loss.output = model.forward(x_t, t, file.has("train.y") ? file["train.y"] : file["in.y"], /*balance_loss=*/true);
  loss.terms = diffusion::training_loss(schedule, loss.output.y, x_start, x_t, t, noise);
  loss.total = loss.terms.loss.mean();
  if (loss.output.load_balance_loss.defined()) {
    loss.moh_loss = loss.output.load_balance_loss * model.config().moh->beta;
    loss.total = loss.total + loss.moh_loss;
  }
  return loss;
}

void check_dit_training(const GoldenFile& file, const models::Dit& model, const diffusion::Schedule& schedule) {
  const Tensor x_t = diffusion::add_noise(schedule, file["train.x_start"], file["train.t"], file["train.noise"]);
  expect_close(file, "train.x_t", x_t, kModelAtol);
  const TrainingLoss loss = dit_training_loss(file, model, schedule);
  expect_close(file, "train.mse", loss.terms.mse, kModelAtol);
  expect_close(file, "train.vb", loss.terms.vb, kModelAtol);
  expect_close(file, "train.loss_terms", loss.terms.loss, kModelAtol);
  expect_close(file, "train.total_loss", loss.total, kModelAtol);
  if (file.has("train.moh_loss")) expect_close(file, "train.moh_loss", loss.moh_loss, kModelAtol);
  if (file.has("train.layer_losses")) {
    expect_close(file, "train.layer_losses", at::stack(loss.output.balance_losses), kModelAtol);
  }
  check_gates(file, "train.gate.", loss.output);
  loss.total.backward();
  for (const auto& [name, parameter] : model.parameters()) {
    if (file.has("grad.param." + name)) expect_gradient(file, "grad.param." + name, parameter.grad(), "grad.");
  }
}

// Five steps of the optimizer on one batch, and the average of the weights along the way.
void check_dit_trajectory(const GoldenFile& file, const models::DitConfig& config,
                          const diffusion::Schedule& schedule) {
  constexpr double kLr = 1e-4, kEmaDecay = 0.9;
  models::Dit model(config, cloned_parameters(file));
  model.set_requires_grad(true);
  const std::vector<bool> decays(model.parameters().size(), false);
  train::AdamW optimizer(model.parameters(), decays, {0.9, 0.999, 1e-8, 0.0});
  train::Ema ema(model.parameters(), kEmaDecay);
  std::vector<Tensor> losses, moh_losses;
  for (std::int64_t step = 0; step < file["trajectory.loss"].size(0); ++step) {
    const TrainingLoss loss = dit_training_loss(file, model, schedule);
    losses.push_back(loss.terms.loss.mean().detach());
    moh_losses.push_back(loss.moh_loss.defined() ? loss.moh_loss.detach() : at::zeros({}));
    loss.total.backward();
    optimizer.step(kLr);
    optimizer.clear_gradients();
    ema.update();
  }
  expect_close(file, "trajectory.loss", at::stack(losses), kModelAtol);
  if (file.has("trajectory.moh_loss")) expect_close(file, "trajectory.moh_loss", at::stack(moh_losses), kModelAtol);
  const c10::NoGradGuard no_grad;
  const Tensor x = file["in.x"], t = file["in.t"], y = file["in.y"];
  expect_close(file, "trajectory.final_eps", model.forward(x, t, y).y, kModelAtol);
  const models::Dit averaged(config, ema.values());
  expect_close(file, "trajectory.ema_eps", averaged.forward(x, t, y).y, kModelAtol);
}

// What the network says of [x; x] for [labels; none], the first three channels guided.
Tensor guided(const models::Dit& model, const Tensor& x, const Tensor& t, const Tensor& y, double scale) {
  const Tensor half = x.narrow(0, 0, x.size(0) / 2);
  return diffusion::guide(model.forward(at::cat({half, half}), t, y).y, scale, 3);
}

void check_dit_loop(const GoldenFile& file, const models::Dit& model, const diffusion::Schedule& full) {
  const auto schedule = diffusion::respaced(full, file.metadata.at("loop_respacing"));
  expect_exact(file, "loop.timestep_map", at::tensor(schedule.timestep_map, at::kLong));
  const double scale = file["cfg.scale"].item<double>();
  Tensor x = file["loop.x_T"];
  std::vector<Tensor> samples;
  for (std::int64_t i = 0; i < schedule.steps(); ++i) {
    const std::int64_t step = schedule.steps() - 1 - i;
    const Tensor t = at::full({x.size(0)}, step, at::kLong);
    const Tensor seen = at::full({x.size(0)}, schedule.timestep_map[step], at::kLong);
    const Tensor output = guided(model, x, seen, file["cfg.y"], scale);
    x = diffusion::ancestral_step(schedule, output, x, t, file["loop.noise"][i], /*clip=*/false);
    samples.push_back(x);
  }
  // An untrained network makes the samples grow: the tolerance is relative to each step's largest value.
  const Tensor expected = file["loop.samples"];
  for (std::int64_t i = 0; i < expected.size(0); ++i) {
    const Tensor excess = (samples[i] - expected[i]).abs() - kRtol * expected[i].abs();
    EXPECT_LE(excess.max().item<double>(), 1e-5 * expected[i].abs().max().item<double>())
        << file.path << ": loop.samples[" << i << "]";
    ++tensors_compared;
  }
}

void check_dit_model(const GoldenFile& file) {
  const models::DitConfig config = dit_config(file);
  models::Dit model(config, cloned_parameters(file));
  model.set_requires_grad(true);
  const auto schedule = diffusion::linear_schedule();
  {
    const c10::NoGradGuard no_grad;
    const Tensor x = file["in.x"], t = file["in.t"], y = file["in.y"];
    const auto output = model.forward(x, t, y);
    expect_close(file, "out.eps", output.y, kModelAtol);
    check_gates(file, "gate.", output);
    if (file.has("embed.timestep_sinusoid")) {
      const Tensor expected = file["embed.timestep_sinusoid"];
      expect_close(file, "embed.timestep_sinusoid", models::timestep_sinusoid(t, expected.size(1)), kModelAtol);
      expect_close(file, "embed.t", model.embed_timesteps(t), kModelAtol);
      expect_close(file, "embed.y", model.embed_labels(y), kModelAtol);
      expect_close(file, "embed.patches", model.embed_patches(x), kModelAtol);
    }
    const std::int64_t grid = config.input_size / config.patch_size;
    expect_close(file, "param.pos_embed", models::dit_positions(config.hidden_size, grid, grid), kLayerAtol);
    if (file.has("cfg.out")) {
      expect_close(file, "cfg.out",
                   guided(model, file["cfg.x"], file["cfg.t"], file["cfg.y"], file["cfg.scale"].item<double>()),
                   kModelAtol);
    }
    if (file.has("loop.samples")) check_dit_loop(file, model, schedule);
  }
  if (file.has("train.x_start")) check_dit_training(file, model, schedule);
  if (file.has("trajectory.loss")) check_dit_trajectory(file, config, schedule);
}

const RegisteredKind attention("dit_attention", check_dit_attention);
const RegisteredKind process("dit_diffusion", check_dit_diffusion);
const RegisteredKind model("dit_model", check_dit_model);

}  // namespace
}  // namespace moh::golden
