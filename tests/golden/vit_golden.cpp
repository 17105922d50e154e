// Golden files of MoH-ViT: its two attention layers and whole models with gradients and training steps.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "moh/layers/vit_attention.h"
#include "moh/models/vit.h"
#include "moh/train/optimizer.h"
#include "tests/golden/golden_file.h"

namespace moh::golden {
namespace {

// The layer's map, and the tables that the position bias is made from.
layers::VitPlace checked_place(const GoldenFile& file, std::int64_t window) {
  const auto& size = file.config.at("hw");
  const layers::MapSize map{size[0].get<std::int64_t>(), size[1].get<std::int64_t>()};
  const std::int64_t ratio = file.config.contains("sr_ratio") ? file.number("sr_ratio") : 1;
  layers::MapSize pretrain = map;  // where the position bias was trained
  if (file.config.contains("pretrain_hw")) {
    const auto& trained = file.config.at("pretrain_hw");
    pretrain = {trained[0].get<std::int64_t>(), trained[1].get<std::int64_t>()};
  }
  const auto place = layers::vit_place(map, ratio, window, pretrain);
  expect_close(file, "in.relative_coords_table", place.positions.table, kLayerAtol);
  expect_exact(file, "in.relative_pos_index", place.positions.index);
  return place;
}

void check_layer(const GoldenFile& file) {
  auto leaves = leaf_parameters(file);
  Tensor x = file["in.x"].clone().set_requires_grad(true);
  const auto take = [&](const char* name) { return optionally(leaves, name).value_or(Tensor()); };
  layers::VitAttentionWeights weights;
  weights.query_embedding = take("query_embedding");
  weights.temperature = take("temperature");
  const auto linear = [&](const std::string& name) {
    return layers::Linear(take((name + ".weight").c_str()), optionally(leaves, name + ".bias"));
  };
  weights.q = linear("q");
  weights.kv = linear("kv");
  weights.pool = linear("sr");
  weights.norm_weight = take("norm.weight");
  weights.norm_bias = take("norm.bias");
  weights.local_bias = take("relative_pos_bias_local");
  weights.tokens = take("learnable_tokens");
  weights.token_bias = take("learnable_bias");
  weights.qkv = linear("qkv");
  weights.proj = linear("proj");
  weights.position = {linear("cpb_fc1"), linear("cpb_fc2")};
  weights.router = layers::make_router("two-stage", [&](const std::string& name) { return optionally(leaves, name); });

  layers::VitAttentionOptions options;
  options.num_heads = file.number("heads");
  options.setting.hidden = x.size(2);
  options.setting.choices = options.num_heads;
  options.setting.shared = file.number("shared");
  options.setting.top_k = file.number("k");
  options.setting.gates = options.setting.balance = layers::GateForm::kAuthors;
  options.window = file.config.contains("window") ? file.number("window") : 3;
  const auto place = checked_place(file, options.window);

  const Tensor bias = layers::vit_position_bias(weights, place);
  const auto output = layers::vit_attention(x, weights, place, bias, options);
  expect_close(file, "out.y", output.y, kLayerAtol);
  expect_close(file, "gate.final", output.routing.gates, kLayerAtol);
  if (file.has("gate.topk")) expect_same_sets(file, "gate.topk", output.routing.indices);
  if (file.has("gate.routed_probs")) {
    expect_close(file, "gate.routed_probs", output.routing.probabilities, kLayerAtol);
  }
  if (file.has("gate.head_out")) {
    // A dense layer whose output projection is the identity gives the heads as they are.
    const c10::NoGradGuard no_grad;
    layers::VitAttentionWeights plain = weights;
    plain.router = nullptr;
    plain.proj = layers::Linear(at::eye(x.size(2)));
    const Tensor heads = layers::vit_attention(x, plain, place, bias, options).y;
    expect_close(file, "gate.head_out", heads.unflatten(2, {options.num_heads, -1}), kLayerAtol);
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

models::VitConfig model_config(const GoldenFile& file) {
  const auto list = [&](const char* key) { return file.config.at(key).get<std::vector<std::int64_t>>(); };
  models::VitConfig config;
  config.image_size = file.number("img_size");
  config.patch_size = file.number("patch_size");
  config.num_classes = file.number("num_classes");
  for (const auto& window : file.config.at("window_size")) {
    if (!window.is_null()) config.window_size = window.get<std::int64_t>();
  }
  config.embed_dims = list("embed_dims");
  config.num_heads = list("num_heads");
  config.depths = list("depths");
  config.sr_ratios = list("sr_ratios");
  config.mlp_ratios = file.config.at("mlp_ratios").get<std::vector<double>>();
  config.moh = models::VitMohConfig{.shared_heads = list("shared_head"), .top_k = list("routed_head")};
  models::check_vit_config(config, file.path);
  return config;
}

models::Vit model_of(const GoldenFile& file) {
  io::NamedTensors tensors;
  for (const auto& [name, tensor] : leaf_parameters(file)) tensors.emplace_back(name, tensor.detach().clone());
  models::Vit model(model_config(file), std::move(tensors));
  model.set_requires_grad(true);
  return model;
}

void check_gradients(const GoldenFile& file, const models::Vit& model) {
  for (const auto& [name, parameter] : model.parameters()) {
    if (file.has("grad.param." + name)) expect_gradient(file, "grad.param." + name, parameter.grad(), "grad.");
    parameter.mutable_grad() = Tensor();
  }
}

// AdamW steps on the one batch, without weight decay on the names that the metadata list.
void check_trajectory(const GoldenFile& file) {
  if (!file.has("trajectory.cross_entropy")) return;
  const models::Vit model = model_of(file);
  const auto excluded = parse_json(file.metadata.at("no_weight_decay"), file.path).get<std::vector<std::string>>();
  std::vector<bool> decays;
  for (const auto& spec : models::vit_parameters(model.config())) {
    decays.push_back(spec.decays);
    const bool listed = std::find(excluded.begin(), excluded.end(), spec.name) != excluded.end();
    EXPECT_EQ(spec.decays, !listed) << spec.name;
  }
  train::AdamW optimizer(model.parameters(), decays, {0.9, 0.999, 1e-8, 0.05});
  std::vector<Tensor> cross_entropies, moh_losses, norms;
  const std::int64_t steps = file["trajectory.cross_entropy"].numel();
  for (std::int64_t step = 0; step < steps; ++step) {
    const auto output = model.forward({.images = file["in.image"], .training = true});
    const Tensor cross_entropy = at::cross_entropy_loss(output.logits, file["in.label"]);
    const Tensor moh_loss = output.load_balance_loss * model.config().moh->beta;
    (cross_entropy + moh_loss).backward();
    cross_entropies.push_back(cross_entropy.detach());
    moh_losses.push_back(moh_loss.detach());
    norms.push_back(at::scalar_tensor(optimizer.clip_gradients(1.0), at::kFloat));
    optimizer.step(1e-3);
    optimizer.clear_gradients();
  }
  expect_close(file, "trajectory.cross_entropy", at::stack(cross_entropies), kModelAtol);
  expect_close(file, "trajectory.moh_loss", at::stack(moh_losses), kModelAtol);
  expect_close(file, "trajectory.grad_norm", at::stack(norms), kModelAtol);
  const c10::NoGradGuard no_grad;
  expect_close(file, "trajectory.final_logits", model.forward({.images = file["in.image"]}).logits, kModelAtol);
}

void check_model(const GoldenFile& file) {
  const models::Vit model = model_of(file);
  const models::VitConfig& config = model.config();
  for (std::size_t stage = 0; stage < config.embed_dims.size(); ++stage) {
    const std::string number = std::to_string(stage + 1);
    if (!file.has("buffer.relative_pos_index" + number)) continue;
    const std::int64_t side = config.map_size(stage, config.image_size);
    const auto& place = model.place(stage, {side, side});
    expect_exact(file, "buffer.relative_pos_index" + number, place.positions.index);
    expect_close(file, "buffer.relative_coords_table" + number, place.positions.table, kLayerAtol);
  }
  const auto output = model.forward({.images = file["in.image"], .training = true});
  expect_close(file, "out.logits", output.logits, kModelAtol);
  expect_close(file, "out.features", output.features, kModelAtol);
  if (file.has("out.layer_losses")) expect_close(file, "out.layer_losses", at::stack(output.layer_losses), kModelAtol);
  for (const auto& layer : output.layers) {
    if (file.has("gate." + layer.name)) expect_close(file, "gate." + layer.name, layer.routing.gates, kModelAtol);
  }
  const Tensor cross_entropy = at::cross_entropy_loss(output.logits, file["in.label"]);
  const Tensor moh_loss = output.load_balance_loss * config.moh->beta;
  expect_close(file, "out.cross_entropy", cross_entropy, kModelAtol);
  expect_close(file, "out.moh_loss", moh_loss, kModelAtol);
  expect_close(file, "out.total_loss", cross_entropy + moh_loss, kModelAtol);
  (cross_entropy + moh_loss).backward();
  check_gradients(file, model);
  check_trajectory(file);
}

const RegisteredKind attention{"vit_attention", check_layer}, aggregated{"vit_aggregated", check_layer},
    model{"vit_model", check_model};

}  // namespace
}  // namespace moh::golden
