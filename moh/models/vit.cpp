#include "moh/models/vit.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <mutex>
#include <unordered_map>

#include "moh/base/error.h"
#include "moh/ops/gated_convolution.h"
#include "moh/ops/linear.h"

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

Tensor drop_path(const Tensor& branch, double share, bool training) {
  if (!training || share == 0) return branch;
  // Drawn on the CPU, whose generator's state a checkpoint keeps.
  Tensor kept = at::empty({branch.size(0), 1, 1}, at::TensorOptions(at::kFloat)).bernoulli_(1 - share);
  kept.div_(1 - share);
  return branch * kept.to(branch.device()).to(branch.scalar_type());
}

// x + branch; in place where no gradient needs the old x.
Tensor added(Tensor x, const Tensor& branch) {
  if (at::GradMode::is_enabled() || x.scalar_type() != at::result_type(x, branch)) return x + branch;
  return x.add_(branch);
}

}  // namespace

struct Vit::Cache {
  struct Bias {
    std::array<std::uint32_t, 4> versions;  // of the weights that it was made from
    Tensor bias;
  };
  std::mutex mutex;
  std::map<std::tuple<std::size_t, std::int64_t, std::int64_t>, std::unique_ptr<layers::VitPlace>> places;
  std::map<std::pair<std::string, const layers::VitPlace*>, Bias> biases;
};

Vit::Vit(VitConfig config, io::NamedTensors tensors) : config_(std::move(config)) {
  std::unordered_map<std::string, Tensor> by_name;
  for (auto& [name, tensor] : tensors) by_name.emplace(name, tensor);
  for (const ParameterSpec& spec : vit_parameters(config_)) {
    const auto found = by_name.find(spec.name);
    MOH_CHECK(found != by_name.end(), "[vit] tensor `", spec.name, "` is missing from the checkpoint");
    MOH_CHECK(found->second.sizes() == at::IntArrayRef(spec.shape), "[vit] tensor `", spec.name, "` must be ",
              at::IntArrayRef(spec.shape), " by the configuration, got ", found->second.sizes());
    MOH_CHECK(at::isFloatingType(found->second.scalar_type()), "[vit] tensor `", spec.name,
              "` must be of a floating type, got ", found->second.scalar_type());
    parameters_.emplace_back(spec.name, found->second);
    by_name.erase(found);
  }
  for (const auto& [name, tensor] : by_name) {
    MOH_CHECK(is_derived(name), "[vit] tensor `", name, "` of the checkpoint has no place in the model");
  }
  bind();
}

void Vit::bind() {
  std::unordered_map<std::string, Tensor> by_name(parameters_.begin(), parameters_.end());
  const auto optionally = [&](const std::string& name) -> optional<Tensor> {
    const auto found = by_name.find(name);
    return found == by_name.end() ? std::nullopt : optional<Tensor>(found->second);
  };
  const auto weight_and_bias = [&](const std::string& name, Tensor& weight, Tensor& bias) {
    weight = by_name.at(name + ".weight");
    bias = by_name.at(name + ".bias");
  };
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
      weight_and_bias(prefix + "mlp.fc1", block.fc1_weight, block.fc1_bias);
      weight_and_bias(prefix + "mlp.dwconv.dwconv", block.conv_weight, block.conv_bias);
      weight_and_bias(prefix + "mlp.fc2", block.fc2_weight, block.fc2_bias);
      layers::VitAttentionWeights& a = block.attention;
      a.query_embedding = by_name.at(attention + "query_embedding");
      a.temperature = by_name.at(attention + "temperature");
      weight_and_bias(attention + "proj", a.proj_weight, a.proj_bias);
      weight_and_bias(attention + "cpb_fc1", a.fc1_weight, a.fc1_bias);
      weight_and_bias(attention + "cpb_fc2", a.fc2_weight, a.fc2_bias);
      if (config_.sr_ratios[i] > 1) {
        weight_and_bias(attention + "q", a.q_weight, a.q_bias);
        weight_and_bias(attention + "kv", a.kv_weight, a.kv_bias);
        weight_and_bias(attention + "sr", a.sr_weight, a.sr_bias);
        weight_and_bias(attention + "norm", a.norm_weight, a.norm_bias);
        a.local_bias = by_name.at(attention + "relative_pos_bias_local");
        a.tokens = by_name.at(attention + "learnable_tokens");
        a.token_bias = by_name.at(attention + "learnable_bias");
      } else {
        weight_and_bias(attention + "qkv", a.qkv_weight, a.qkv_bias);
      }
      a.wg = optionally(attention + "wg.weight");
      a.wg_1 = optionally(attention + "wg_1.weight");
      a.wg_0 = optionally(attention + "wg_0.weight");
      stage.blocks.push_back(std::move(block));
    }
    stages_.push_back(std::move(stage));
  }
  weight_and_bias("head", head_weight_, head_bias_);
}

Vit Vit::load(const std::string& folder, optional<at::ScalarType> dtype, const std::string& weights) {
  VitConfig config = parse_vit_config(io::load_config(folder), folder + "/config.json");
  MOH_CHECK(weights == "auto" || weights == "ema" || weights == "model",
            "[vit] weights must be auto, ema or model, got ", weights);
  const std::string averaged = folder + "/ema.safetensors";
  const bool has_averaged = std::filesystem::exists(averaged);
  MOH_CHECK(weights != "ema" || has_averaged, "[vit] ", folder, " has no averaged weights (ema.safetensors)");
  io::NamedTensors tensors = io::load_tensors(weights != "model" && has_averaged ? averaged : folder);
  if (dtype) {
    for (auto& [name, tensor] : tensors) tensor = tensor.to(*dtype);
  }
  return Vit(std::move(config), std::move(tensors));
}

void Vit::save(const std::string& folder) const {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  MOH_CHECK(!error, "[vit] cannot make folder ", folder, ": ", error.message());
  io::save_tensors(folder + "/model.safetensors", parameters_);
  io::save_json(folder + "/config.json", vit_config_json(config_));
}

std::int64_t Vit::num_parameters() const {
  std::int64_t count = 0;
  for (const auto& [name, tensor] : parameters_) count += tensor.numel();
  return count;
}

at::Device Vit::device() const { return head_weight_.device(); }

void Vit::to(at::Device device) {
  for (auto& [name, tensor] : parameters_) tensor = tensor.to(device);
  bind();
}

void Vit::set_image_size(std::int64_t pixels) {
  VitConfig config = config_;
  if (config.pretrain_size == 0) config.pretrain_size = config.image_size;
  config.image_size = pixels;
  check_vit_config(config, "vit");
  config_ = std::move(config);
}

void Vit::set_requires_grad(bool requires_grad) {
  for (auto& [name, tensor] : parameters_) tensor.set_requires_grad(requires_grad);
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

Tensor Vit::position_bias(const Block& block, const layers::VitPlace& place, bool reuse) const {
  const layers::VitAttentionWeights& a = block.attention;
  if (!reuse || c10::GradMode::is_enabled()) return layers::vit_position_bias(a, place);
  // Without gradients the bias changes only when its weights do.
  const auto version = [](const Tensor& tensor) { return static_cast<std::uint32_t>(tensor._version()); };
  const std::array<std::uint32_t, 4> versions = {version(a.fc1_weight), version(a.fc1_bias), version(a.fc2_weight),
                                                 version(a.fc2_bias)};
  const std::lock_guard lock(cache_->mutex);
  Cache::Bias& kept = cache_->biases[{block.name, &place}];
  if (!kept.bias.defined() || kept.versions != versions) kept = {versions, layers::vit_position_bias(a, place)};
  return kept.bias;
}

layers::VitAttentionOptions Vit::attention_options(std::size_t stage) const {
  layers::VitAttentionOptions options;
  options.num_heads = config_.num_heads[stage];
  options.shared_heads = config_.shared_heads(stage);
  options.top_k = config_.top_k(stage);
  options.window = config_.window_size;
  options.routed = config_.moh.has_value();
  options.two_stage = !config_.moh || config_.moh->two_stage;
  return options;
}

Tensor Vit::attend(std::size_t stage, const Block& block, const Tensor& x, MapSize map, const VitInput& input,
                   VitOutput& output) const {
  layers::VitAttentionOptions options = attention_options(stage);
  options.authors_form = input.authors_form;
  options.balance_loss = input.training;
  const layers::VitPlace& where = place(stage, map);
  auto attended =
      layers::vit_attention(x, block.attention, where, position_bias(block, where, !input.authors_form), options);
  if (attended.load_balance_loss.defined()) output.layer_losses.push_back(attended.load_balance_loss);
  output.layers.push_back({block.name + ".attn", std::move(attended.routing)});
  return attended.y;
}

// The gated MLP: GELU(depthwise convolution of one half) times the other half.
Tensor Vit::mlp(const Block& block, const Tensor& x, MapSize map, bool authors_form) const {
  if (authors_form) {
    const Tensor hidden = at::linear(x, block.fc1_weight, block.fc1_bias);
    const Tensor gated =
        ops::gated_convolution_composite(hidden, block.conv_weight, block.conv_bias, map.height, map.width);
    return at::linear(gated, block.fc2_weight, block.fc2_bias);
  }
  const Tensor hidden = ops::linear(x, block.fc1_weight, block.fc1_bias);
  const Tensor gated = ops::gated_convolution(hidden, block.conv_weight, block.conv_bias, map.height, map.width);
  return ops::linear(gated, block.fc2_weight, block.fc2_bias);
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
  Tensor x = input.authors_form ? images : images.contiguous(at::MemoryFormat::ChannelsLast);
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    const Stage& stage = stages_[i];
    const std::int64_t kernel = stage.patch_weight.size(2), stride = i == 0 ? config_.patch_size : 2;
    if (input.authors_form) x = x.contiguous();
    x = at::conv2d(x, stage.patch_weight, stage.patch_bias, stride, kernel / 2);
    const MapSize map{x.size(2), x.size(3)};
    x = layer_norm(as_tokens(x), stage.patch_norm_weight, stage.patch_norm_bias, kPatchEps);
    for (const Block& block : stage.blocks) {
      const Tensor attended =
          attend(i, block, layer_norm(x, block.norm1_weight, block.norm1_bias, kBlockEps), map, input, output);
      x = added(x, drop_path(attended, block.drop_path, input.training));
      const Tensor mixed =
          mlp(block, layer_norm(x, block.norm2_weight, block.norm2_bias, kBlockEps), map, input.authors_form);
      x = added(x, drop_path(mixed, block.drop_path, input.training));
    }
    x = layer_norm(x, stage.norm_weight, stage.norm_bias, kBlockEps);
    if (i < last) x = as_map(x, map);
  }
  output.features = x.mean(1);
  output.logits = at::linear(output.features, head_weight_, head_bias_);
  if (!output.layer_losses.empty()) output.load_balance_loss = at::stack(output.layer_losses).mean();
  return output;
}

}  // namespace moh::models
