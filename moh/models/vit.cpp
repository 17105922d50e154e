#include "moh/models/vit.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <mutex>

#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/layers/recompute.h"
#include "moh/ops/gated_convolution.h"

namespace moh::models {

using at::Tensor;
using layers::MapSize;
using std::optional;

namespace {

constexpr double kBlockEps = 1e-6, kPatchEps = 1e-5;

// Buffers that a checkpoint may carry although they follow from the image size.
bool is_derived(const std::string& name) {
  for (const char* part : {"relative_pos_index", "relative_coords_table", "seq_length_scale", "padding_mask"}) {
    if (name.find(part) != std::string::npos) return true;
  }
  return false;
}

// In the weights' type, also under autocast: the residual stream stays fp32.
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  return at::layer_norm(x.to(weight.scalar_type()), weight.sizes(), weight, bias, eps);
}

// [B, N, C] as a map [B, C, height, width] whose channels lie side by side: no copy.
Tensor as_map(const Tensor& tokens, MapSize map) {
  return tokens.reshape({tokens.size(0), map.height, map.width, tokens.size(2)}).permute({0, 3, 1, 2});
}

// A map [B, C, height, width] as tokens [B, N, C]: no copy if its channels lie side by side.
Tensor as_tokens(const Tensor& map) { return map.permute({0, 2, 3, 1}).flatten(1, 2); }

// What drop path leaves of a branch, as a factor [B, 1, 1]; undefined: everything.
Tensor draw_kept(double share, const VitInput& input) {
  if (!input.training || share == 0) return {};
  // Drawn on the CPU, whose generator's state a checkpoint keeps.
  const std::int64_t count = input.drawn.count > 0 ? input.drawn.count : input.images.size(0);
  Tensor kept = at::empty({count, 1, 1}, at::TensorOptions(at::kFloat)).bernoulli_(1 - share);
  if (input.drawn.count > 0) kept = kept.index_select(0, input.drawn.places);
  return kept.div_(1 - share).to(input.images.device());
}

Tensor drop_path(const Tensor& branch, const Tensor& kept) {
  return kept.defined() ? branch * kept.to(branch.scalar_type()) : branch;
}

// x + branch; in place where no gradient needs the old x.
Tensor added(Tensor x, const Tensor& branch) {
  if (at::GradMode::is_enabled() || x.scalar_type() != at::result_type(x, branch)) return x + branch;
  return x.add_(branch);
}

}  // namespace

struct Vit::Cache {
  struct Bias {
    std::array<std::uint64_t, 2> versions;  // of the weights that it was made from
    Tensor bias;
  };
  std::mutex mutex;
  std::map<std::tuple<std::size_t, std::int64_t, std::int64_t>, std::unique_ptr<layers::VitPlace>> places;
  std::map<std::pair<std::string, const layers::VitPlace*>, Bias> biases;
};

Vit::Vit(VitConfig config, io::NamedTensors tensors)
    : config_(std::move(config)),
      parameters_({.model = "vit", .described_by = "the configuration", .is_derived = is_derived},
                  vit_parameters(config_), std::move(tensors)) {
  bind();
}

void Vit::bind() {
  const auto weight_and_bias = [&](const std::string& name, Tensor& weight, Tensor& bias) {
    weight = parameters_[name + ".weight"];
    bias = parameters_[name + ".bias"];
  };
  const auto linear = [&](const std::string& name) { return parameters_.linear(name); };
  cache_ = std::make_shared<Cache>();
  stages_.clear();
  std::int64_t depth = 0, index = 0;
  for (const std::int64_t blocks : config_.depths) depth += blocks;
  for (std::size_t i = 0; i < config_.embed_dims.size(); ++i) {
    const std::string number = std::to_string(i + 1);
    Stage stage;
    weight_and_bias("patch_embed" + number + ".proj", stage.patch_weight, stage.patch_bias);
    weight_and_bias("patch_embed" + number + ".norm", stage.patch_norm_weight, stage.patch_norm_bias);
    weight_and_bias("norm" + number, stage.norm_weight, stage.norm_bias);
    for (std::int64_t j = 0; j < config_.depths[i]; ++j, ++index) {
      Block block;
      block.name = "block" + number + "." + std::to_string(j);
      block.drop_path = depth > 1 ? config_.drop_path * static_cast<double>(index) / static_cast<double>(depth - 1) : 0;
      const std::string prefix = block.name + ".", attention = prefix + "attn.";
      weight_and_bias(prefix + "norm1", block.norm1_weight, block.norm1_bias);
      weight_and_bias(prefix + "norm2", block.norm2_weight, block.norm2_bias);
      block.fc1 = linear(prefix + "mlp.fc1");
      weight_and_bias(prefix + "mlp.dwconv.dwconv", block.conv_weight, block.conv_bias);
      block.fc2 = linear(prefix + "mlp.fc2");
      layers::VitAttentionWeights& a = block.attention;
      a.query_embedding = parameters_[attention + "query_embedding"];
      a.temperature = parameters_[attention + "temperature"];
      a.proj = linear(attention + "proj");
      a.position.fc1 = parameters_.linear(attention + "cpb_fc1", layers::Product::kPlain);
      a.position.fc2 = parameters_.linear(attention + "cpb_fc2", layers::Product::kPlain);
      if (config_.sr_ratios[i] > 1) {
        a.q = linear(attention + "q");
        a.kv = linear(attention + "kv");
        a.pool = linear(attention + "sr");
        weight_and_bias(attention + "norm", a.norm_weight, a.norm_bias);
        a.local_bias = parameters_[attention + "relative_pos_bias_local"];
        a.tokens = parameters_[attention + "learnable_tokens"];
        a.token_bias = parameters_[attention + "learnable_bias"];
      } else {
        a.qkv = linear(attention + "qkv");
      }
      if (config_.moh) {
        a.router = layers::make_router(kVitRouter,
                                       [&](const std::string& name) { return parameters_.find(attention + name); });
      }
      stage.blocks.push_back(std::move(block));
    }
    stages_.push_back(std::move(stage));
  }
  head_ = parameters_.linear("head", layers::Product::kPlain);
}

Vit Vit::load(const std::string& folder, optional<at::ScalarType> dtype, const std::string& weights) {
  VitConfig config = parse_vit_config(io::load_config(folder), folder + "/config.json");
  return Vit(std::move(config), load_weights(folder, weights, "vit", dtype));
}

void Vit::save(const std::string& folder) const { parameters_.save(folder, vit_config_json(config_)); }

void Vit::to(at::Device device) {
  parameters_.to(device);
  bind();
}

void Vit::set_image_size(std::int64_t pixels) {
  VitConfig config = config_;
  if (config.pretrain_size == 0) config.pretrain_size = config.image_size;
  config.image_size = pixels;
  check_vit_config(config, "vit");
  config_ = std::move(config);
}

const layers::VitPlace& Vit::place(std::size_t stage, MapSize map) const {
  const std::lock_guard lock(cache_->mutex);
  auto& kept = cache_->places[{stage, map.height, map.width}];
  if (!kept) {
    const std::int64_t side =
        config_.map_size(stage, config_.pretrain_size > 0 ? config_.pretrain_size : config_.image_size);
    kept = std::make_unique<layers::VitPlace>(
        layers::vit_place(map, config_.sr_ratios[stage], config_.window_size, {side, side}).to(device()));
  }
  return *kept;
}

Tensor Vit::position_bias(const Block& block, const layers::VitPlace& place) const {
  const layers::VitAttentionWeights& a = block.attention;
  if (c10::GradMode::is_enabled()) return layers::vit_position_bias(a, place);
  // Without gradients the bias changes only when its weights do.
  const std::array<std::uint64_t, 2> versions = {a.position.fc1.version(), a.position.fc2.version()};
  const std::lock_guard lock(cache_->mutex);
  Cache::Bias& kept = cache_->biases[{block.name, &place}];
  if (!kept.bias.defined() || kept.versions != versions) kept = {versions, layers::vit_position_bias(a, place)};
  return kept.bias;
}

layers::VitAttentionOptions Vit::attention_options(std::size_t stage) const {
  layers::VitAttentionOptions options;
  options.num_heads = config_.num_heads[stage];
  options.window = config_.window_size;
  options.setting = vit_router_setting(config_, stage);
  return options;
}

layers::MohLayerOutput Vit::attend(std::size_t stage, const Block& block, const Tensor& x, MapSize map,
                                   bool balance_loss) const {
  layers::VitAttentionOptions options = attention_options(stage);
  options.balance_loss = balance_loss;
  const layers::VitPlace& where = place(stage, map);
  return layers::vit_attention(x, block.attention, where, position_bias(block, where), options);
}

// The gated MLP: GELU(depthwise convolution of one half) times the other half.
Tensor Vit::mlp(const Block& block, const Tensor& x, MapSize map) const {
  return block.fc2(ops::gated_convolution(block.fc1(x), block.conv_weight, block.conv_bias, map.height, map.width));
}

Tensor Vit::run_block(std::size_t stage, const Block& block, const Tensor& x, MapSize map,
                      const std::vector<Tensor>& kept, ops::Routing& routing, Tensor* loss) const {
  auto attended =
      attend(stage, block, layer_norm(x, block.norm1_weight, block.norm1_bias, kBlockEps), map, loss != nullptr);
  routing = std::move(attended.routing);
  if (loss != nullptr) *loss = attended.load_balance_loss;
  const Tensor middle = added(x, drop_path(attended.y, kept[0]));
  const Tensor mixed = mlp(block, layer_norm(middle, block.norm2_weight, block.norm2_bias, kBlockEps), map);
  return added(middle, drop_path(mixed, kept[1]));
}

// The routing comes out of the segment, whose probabilities the load-balance loss is computed from outside: once.
Tensor Vit::recomputed_block(std::size_t stage, const Block& block, const Tensor& x, MapSize map,
                             const std::vector<Tensor>& kept, ops::Routing& routing, Tensor* loss) const {
  const bool routes = block.attention.router != nullptr;
  const auto segment = [this, stage, &block, map, kept](const std::vector<Tensor>& inputs) -> std::vector<Tensor> {
    ops::Routing inside;
    Tensor after = run_block(stage, block, inputs[0], map, kept, inside, nullptr);
    if (block.attention.router == nullptr) return {after};
    return {after, inside.probabilities, inside.gates.detach(), inside.indices};
  };
  auto results = layers::recomputed(segment, {x}, parameters_.under(block.name + "."), routes ? 2 : 1);
  if (routes) {
    routing = {results[2], results[3], results[1]};
    if (loss != nullptr) *loss = block.attention.router->balance_loss(attention_options(stage).setting, routing);
  }
  return results[0];
}

VitOutput Vit::forward(const VitInput& input) const {
  const Tensor& images = input.images;
  MOH_CHECK(images.dim() == 4 && images.size(1) == 3, "[vit] images must be [B, 3, height, width], got ",
            images.sizes());
  const std::size_t last = stages_.size() - 1;
  MOH_CHECK(
      images.size(0) > 0 && config_.map_size(last, images.size(2)) > 0 && config_.map_size(last, images.size(3)) > 0,
      "[vit] images of ", images.size(2), " x ", images.size(3), " are too small for this model");
  VitOutput output;
  Tensor x = images.contiguous(at::MemoryFormat::ChannelsLast);
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    const Stage& stage = stages_[i];
    const std::int64_t kernel = stage.patch_weight.size(2), stride = i == 0 ? config_.patch_size : 2;
    x = at::conv2d(x, stage.patch_weight, stage.patch_bias, stride, kernel / 2);
    const MapSize map{x.size(2), x.size(3)};
    x = layer_norm(as_tokens(x), stage.patch_norm_weight, stage.patch_norm_bias, kPatchEps);
    for (const Block& block : stage.blocks) {
      const std::vector<Tensor> kept = {draw_kept(block.drop_path, input), draw_kept(block.drop_path, input)};
      ops::Routing routing;
      Tensor loss;
      Tensor* const wanted = input.training ? &loss : nullptr;
      x = input.recompute ? recomputed_block(i, block, x, map, kept, routing, wanted)
                          : run_block(i, block, x, map, kept, routing, wanted);
      check_interrupt();
      if (loss.defined()) output.layer_losses.push_back(loss);
      output.layers.push_back({block.name + ".attn", std::move(routing)});
    }
    part_done(static_cast<std::int64_t>(i) + 1, static_cast<std::int64_t>(stages_.size()));
    x = layer_norm(x, stage.norm_weight, stage.norm_bias, kBlockEps);
    if (i < last) x = as_map(x, map);
  }
  output.features = x.mean(1);
  output.logits = head_(output.features);
  if (!output.layer_losses.empty()) output.load_balance_loss = at::stack(output.layer_losses).mean();
  return output;
}

}  // namespace moh::models
