#include "moh/models/dit.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <unordered_map>

#include "moh/base/error.h"
#include "moh/ops/linear.h"

namespace moh::models {
namespace {

using at::Tensor;
using std::optional;

constexpr std::int64_t kSinusoids = 256;  // of the timestep
constexpr double kNormEps = 1e-6, kLongest = 10000.0;

std::string block_prefix(std::int64_t layer) { return "blocks." + std::to_string(layer) + "."; }

// LN(x) (1 + scale) + shift; scale and shift [N, C], x [N, T, C].
Tensor modulated_norm(const Tensor& x, const Tensor& shift, const Tensor& scale) {
  const Tensor normed = at::layer_norm(x, {x.size(-1)}, {}, {}, kNormEps);
  return at::addcmul(shift.unsqueeze(1), normed, scale.unsqueeze(1) + 1);
}

// tokens + gate y, gate [N, C]; in place where no gradient needs the old tokens.
Tensor added(Tensor tokens, const Tensor& gate, const Tensor& y) {
  if (at::GradMode::is_enabled()) return at::addcmul(tokens, gate.unsqueeze(1), y);
  return tokens.addcmul_(gate.unsqueeze(1), y);
}

// [N] angles t * f for each of `frequencies`, in float64.
Tensor angles(const Tensor& values, std::int64_t count) {
  const Tensor exponents = at::arange(count, at::TensorOptions(at::kDouble)) / static_cast<double>(count);
  const Tensor frequencies = at::exp(exponents * -std::log(kLongest));
  return values.to(at::kDouble).unsqueeze(-1) * frequencies;
}

}  // namespace

std::vector<DitParameter> dit_parameters(const DitConfig& config) {
  const std::int64_t hidden = config.hidden_size, patch = config.patch_size, grid = config.input_size / patch;
  std::vector<DitParameter> all = {{"pos_embed", {1, grid * grid, hidden}},
                                   {"x_embedder.proj.weight", {hidden, config.in_channels, patch, patch}},
                                   {"x_embedder.proj.bias", {hidden}}};
  const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t columns, bool has_bias = true) {
    all.push_back({name + ".weight", {rows, columns}});
    if (has_bias) all.push_back({name + ".bias", {rows}});
  };
  matrix("t_embedder.mlp.0", hidden, kSinusoids);
  matrix("t_embedder.mlp.2", hidden, hidden);
  matrix("y_embedder.embedding_table", config.label_rows(), hidden, false);
  for (std::int64_t layer = 0; layer < config.depth; ++layer) {
    const std::string prefix = block_prefix(layer);
    const std::int64_t heads = config.num_heads[layer], shared = config.shared_heads(layer), k = config.top_k(layer);
    matrix(prefix + "attn.qkv", 3 * heads * config.head_dim, hidden);
    matrix(prefix + "attn.proj", hidden, heads * config.head_dim);
    if (config.moh) {  // the matrices that each case needs: spec, section 1
      if (k > 0) matrix(prefix + "attn.wg", heads - shared, hidden, false);
      if (k > 0 && shared > 0) matrix(prefix + "attn.wg_0", 2, hidden, false);
      if (shared > 1) matrix(prefix + "attn.wg_1", shared, hidden, false);
    }
    matrix(prefix + "mlp.fc1", config.mlp_size(), hidden);
    matrix(prefix + "mlp.fc2", hidden, config.mlp_size());
    matrix(prefix + "adaLN_modulation.1", 6 * hidden, hidden);
  }
  matrix("final_layer.linear", patch * patch * config.out_channels(), hidden);
  matrix("final_layer.adaLN_modulation.1", 2 * hidden, hidden);
  return all;
}

std::int64_t dit_parameter_count(const DitConfig& config, bool trained_only) {
  std::int64_t count = 0;
  for (const DitParameter& parameter : dit_parameters(config)) {
    if (trained_only && parameter.name == "pos_embed") continue;
    std::int64_t size = 1;
    for (const std::int64_t extent : parameter.shape) size *= extent;
    count += size;
  }
  return count;
}

Tensor dit_positions(std::int64_t hidden_size, std::int64_t rows, std::int64_t columns) {
  const auto encode = [&](std::int64_t count) {
    const Tensor angle = angles(at::arange(count, at::TensorOptions(at::kDouble)), hidden_size / 4);
    return at::cat({angle.sin(), angle.cos()}, -1);  // [count, C / 2]
  };
  const Tensor column = encode(columns).unsqueeze(0).expand({rows, columns, hidden_size / 2});
  const Tensor row = encode(rows).unsqueeze(1).expand({rows, columns, hidden_size / 2});
  return at::cat({column, row}, -1).reshape({1, rows * columns, hidden_size}).to(at::kFloat);
}

Tensor timestep_sinusoid(const Tensor& t, std::int64_t size) {
  // Frequencies and angles in fp32, as the authors' code does: its checkpoints have learned these values.
  const Tensor exponents = at::arange(size / 2, t.options().dtype(at::kFloat)) * -std::log(kLongest);
  const Tensor angle = t.to(at::kFloat).unsqueeze(-1) * at::exp(exponents / static_cast<double>(size / 2));
  return at::cat({angle.cos(), angle.sin()}, -1);
}

Tensor Dit::Linear::operator()(const Tensor& x, ops::Activation activation) const {
  return ops::linear(x, weight, bias, activation);
}

Dit::Dit(DitConfig config, io::NamedTensors tensors) : config_(std::move(config)) {
  check_dit_config(config_, "dit");
  std::unordered_map<std::string, Tensor> by_name;
  for (auto& [name, tensor] : tensors) by_name.emplace(name, tensor);
  for (const DitParameter& wanted : dit_parameters(config_)) {
    const auto found = by_name.find(wanted.name);
    MOH_CHECK(found != by_name.end(), "[dit] tensor `", wanted.name, "` is missing from the checkpoint");
    MOH_CHECK(found->second.sizes() == at::IntArrayRef(wanted.shape), "[dit] tensor `", wanted.name, "` must be ",
              at::IntArrayRef(wanted.shape), " by config.json, got ", found->second.sizes());
    MOH_CHECK(at::isFloatingType(found->second.scalar_type()), "[dit] tensor `", wanted.name,
              "` must be of a floating type, got ", found->second.scalar_type());
    parameters_.emplace_back(wanted.name, found->second);
    by_name.erase(found);
  }
  MOH_CHECK(by_name.empty(), "[dit] tensor `", by_name.empty() ? "" : by_name.begin()->first,
            "` of the checkpoint has no place in the model of config.json");
  bind();
}

void Dit::bind() {
  const std::unordered_map<std::string, Tensor> by_name(parameters_.begin(), parameters_.end());
  const auto optionally = [&](const std::string& name) -> optional<Tensor> {
    const auto found = by_name.find(name);
    return found == by_name.end() ? std::nullopt : optional<Tensor>(found->second);
  };
  const auto linear = [&](const std::string& name) {
    return Linear{by_name.at(name + ".weight"), optionally(name + ".bias")};
  };
  positions_ = by_name.at("pos_embed");
  labels_ = by_name.at("y_embedder.embedding_table.weight");
  patches_ = linear("x_embedder.proj");
  time_1_ = linear("t_embedder.mlp.0");
  time_2_ = linear("t_embedder.mlp.2");
  final_ = linear("final_layer.linear");
  final_modulation_ = linear("final_layer.adaLN_modulation.1");
  blocks_.clear();
  for (std::int64_t layer = 0; layer < config_.depth; ++layer) {
    const std::string prefix = block_prefix(layer), attention = prefix + "attn.";
    const Linear qkv = linear(attention + "qkv"), proj = linear(attention + "proj");
    Block block;
    block.attention = {qkv.weight,
                       qkv.bias,
                       proj.weight,
                       proj.bias,
                       optionally(attention + "wg.weight"),
                       optionally(attention + "wg_1.weight"),
                       optionally(attention + "wg_0.weight")};
    block.options.num_heads = config_.num_heads[layer];
    block.options.shared_heads = config_.shared_heads(layer);
    block.options.top_k = config_.top_k(layer);
    block.options.form = config_.moh ? config_.moh->gates : "none";
    block.fc1 = linear(prefix + "mlp.fc1");
    block.fc2 = linear(prefix + "mlp.fc2");
    block.modulation = linear(prefix + "adaLN_modulation.1");
    blocks_.push_back(std::move(block));
  }
}

Dit Dit::initialize(const DitConfig& config, std::uint64_t seed) {
  check_dit_config(config, "dit");
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const std::int64_t grid = config.input_size / config.patch_size;
  io::NamedTensors tensors;
  for (const DitParameter& wanted : dit_parameters(config)) {
    const std::string& name = wanted.name;
    Tensor tensor = at::zeros(wanted.shape, at::TensorOptions(at::kFloat));
    const bool starts_zero = name.ends_with(".bias") || name.find("adaLN_modulation") != std::string::npos ||
                             name.starts_with("final_layer.");
    if (name == "pos_embed") {
      tensor = dit_positions(config.hidden_size, grid, grid);
    } else if (name.starts_with("t_embedder.") && !starts_zero) {
      tensor.normal_(0.0, 0.02, generator);
    } else if (name.starts_with("y_embedder.")) {
      tensor.normal_(0.0, 0.02, generator);
    } else if (!starts_zero) {  // Xavier; a patch counts as one long input
      const auto rows = static_cast<double>(tensor.size(0));
      const double bound = std::sqrt(6.0 / (rows + static_cast<double>(tensor.numel()) / rows));
      tensor.uniform_(-bound, bound, generator);
    }
    tensors.emplace_back(name, tensor);
  }
  return Dit(config, std::move(tensors));
}

void Dit::to(at::Device device) {
  for (auto& [name, tensor] : parameters_) tensor = tensor.to(device);
  bind();
}

void Dit::set_requires_grad(bool requires_grad) {
  for (auto& [name, tensor] : parameters_) tensor.set_requires_grad(requires_grad && name != "pos_embed");
}

Dit Dit::with_values(const std::vector<Tensor>& tensors) const {
  MOH_CHECK(tensors.size() == parameters_.size(), "[dit] ", tensors.size(), " tensors for ", parameters_.size(),
            " parameters");
  io::NamedTensors named;
  for (std::size_t i = 0; i < tensors.size(); ++i) named.emplace_back(parameters_[i].first, tensors[i]);
  return Dit(config_, std::move(named));
}

Tensor Dit::positions(std::int64_t rows, std::int64_t columns) const {
  const std::int64_t grid = config_.input_size / config_.patch_size;
  if (rows == grid && columns == grid) return positions_;
  return dit_positions(config_.hidden_size, rows, columns).to(positions_.options().requires_grad(false));
}

Tensor Dit::embed_patches(const Tensor& x) const {
  const std::int64_t patch = config_.patch_size, rows = x.size(2) / patch, columns = x.size(3) / patch;
  const Tensor pixels = x.reshape({x.size(0), x.size(1), rows, patch, columns, patch})
                            .permute({0, 2, 4, 1, 3, 5})
                            .reshape({x.size(0), rows * columns, x.size(1) * patch * patch});
  return at::linear(pixels.to(patches_.weight.scalar_type()), patches_.weight.flatten(1), patches_.bias);
}

Tensor Dit::embed_timesteps(const Tensor& t) const {
  return time_2_(at::silu(time_1_(timestep_sinusoid(t, kSinusoids).to(time_1_.weight.scalar_type()))));
}

Tensor Dit::embed_labels(const Tensor& y) const {
  MOH_CHECK(y.dim() == 1 && y.scalar_type() == at::kLong, "[dit] labels must be int64 [N], got ", y.scalar_type(), " ",
            y.sizes());
  if (y.is_cpu() && y.numel() > 0) {  // looking would stop a GPU, whose own check ends the process
    const auto [least, most] = at::aminmax(y);
    MOH_CHECK(least.item<std::int64_t>() >= 0 && most.item<std::int64_t>() < labels_.size(0),
              "[dit] classes must be in 0..", labels_.size(0) - 1, ", got ", least.item<std::int64_t>(), "..",
              most.item<std::int64_t>());
  }
  return at::embedding(labels_, y);
}

DitOutput Dit::forward(const Tensor& x, const Tensor& t, const Tensor& y) const {
  const std::int64_t patch = config_.patch_size;
  MOH_CHECK(x.dim() == 4 && x.size(1) == config_.in_channels, "[dit] x must be [N, ", config_.in_channels,
            ", H, W], got ", x.sizes());
  MOH_CHECK(x.size(2) > 0 && x.size(3) > 0 && x.size(2) % patch == 0 && x.size(3) % patch == 0,
            "[dit] height and width ", x.size(2), " x ", x.size(3), " must be multiples of the patch size ", patch);
  MOH_CHECK(t.dim() == 1 && t.size(0) == x.size(0) && y.size(0) == x.size(0), "[dit] t and y must be [", x.size(0),
            "], got ", t.sizes(), " and ", y.sizes());
  const std::int64_t rows = x.size(2) / patch, columns = x.size(3) / patch;

  DitOutput output;
  Tensor tokens = embed_patches(x) + positions(rows, columns);
  const Tensor condition = at::silu(embed_timesteps(t) + embed_labels(y));
  for (const Block& block : blocks_) {
    const std::vector<Tensor> m = block.modulation(condition).chunk(6, -1);
    const auto attended = layers::moh_attention(modulated_norm(tokens, m[0], m[1]), block.attention, block.options);
    tokens = added(tokens, m[2], attended.y);
    const Tensor hidden = block.fc1(modulated_norm(tokens, m[3], m[4]), ops::Activation::kGeluTanh);
    tokens = added(tokens, m[5], block.fc2(hidden));
    if (config_.moh) output.routing.push_back(attended.routing);
    if (attended.load_balance_loss.defined()) output.balance_losses.push_back(attended.load_balance_loss);
  }
  if (!output.balance_losses.empty()) output.load_balance_loss = at::stack(output.balance_losses).mean();

  const std::vector<Tensor> m = final_modulation_(condition).chunk(2, -1);
  const std::int64_t channels = config_.out_channels();
  output.y = final_(modulated_norm(tokens, m[0], m[1]))
                 .to(at::kFloat)
                 .reshape({x.size(0), rows, columns, patch, patch, channels})
                 .permute({0, 5, 1, 3, 2, 4})
                 .reshape({x.size(0), channels, x.size(2), x.size(3)});
  return output;
}

}  // namespace moh::models
