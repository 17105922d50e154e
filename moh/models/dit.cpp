#include "moh/models/dit.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/layers/recompute.h"

namespace moh::models {
namespace {

using at::Tensor;

constexpr const char* kRouter = "two-stage";
constexpr std::int64_t kSinusoids = 256;  // of the timestep
constexpr double kNormEps = 1e-6, kLongest = 10000.0;

layers::RouterSetting router_setting(const DitConfig& config, std::int64_t layer) {
  layers::RouterSetting setting;
  setting.hidden = config.hidden_size;
  setting.choices = config.num_heads[layer];
  setting.shared = config.shared_heads(layer);
  setting.top_k = config.top_k(layer);
  if (config.moh) layers::parse_name(config.moh->gates, setting.gates, "dit", "moh.gates");
  setting.balance = setting.gates;
  return setting;
}

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

ParameterSpecs dit_parameters(const DitConfig& config) {
  const std::int64_t hidden = config.hidden_size, patch = config.patch_size, grid = config.input_size / patch;
  ParameterSpecs all = {{.name = "pos_embed", .shape = {1, grid * grid, hidden}, .trained = false},
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
    const std::int64_t heads = config.num_heads[layer];
    matrix(prefix + "attn.qkv", 3 * heads * config.head_dim, hidden);
    matrix(prefix + "attn.proj", hidden, heads * config.head_dim);
    if (config.moh) {
      for (auto& tensor : layers::router_tensors_by_name(kRouter, router_setting(config, layer))) {
        all.push_back({prefix + "attn." + tensor.name, std::move(tensor.shape)});
      }
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
  return parameter_count(dit_parameters(config), trained_only);
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

Dit::Dit(DitConfig config, io::NamedTensors tensors) : config_(std::move(config)) {
  check_dit_config(config_, "dit");
  parameters_ = Parameters({.model = "dit"}, dit_parameters(config_), std::move(tensors));
  bind();
}

void Dit::bind() {
  const auto linear = [&](const std::string& name) { return parameters_.linear(name); };
  positions_ = parameters_["pos_embed"];
  labels_ = parameters_["y_embedder.embedding_table.weight"];
  patches_ = parameters_.linear("x_embedder.proj", layers::Product::kPlain);
  time_1_ = linear("t_embedder.mlp.0");
  time_2_ = linear("t_embedder.mlp.2");
  final_ = linear("final_layer.linear");
  final_modulation_ = linear("final_layer.adaLN_modulation.1");
  blocks_.clear();
  for (std::int64_t layer = 0; layer < config_.depth; ++layer) {
    const std::string prefix = block_prefix(layer), attention = prefix + "attn.";
    Block block;
    if (config_.moh) {
      block.router =
          layers::make_router(kRouter, [&](const std::string& name) { return parameters_.find(attention + name); });
    }
    block.setting = router_setting(config_, layer);
    block.attention.num_heads = block.attention.num_kv_heads = config_.num_heads[layer];
    block.attention.in =
        layers::Projections::of_joint(linear(attention + "qkv"), config_.num_heads[layer] * config_.head_dim);
    block.attention.out = linear(attention + "proj");
    block.attention.router = block.router.get();
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
  return Dit(config, draw_parameters(dit_parameters(config), [&](const ParameterSpec& spec, Tensor& tensor) {
               const std::string& name = spec.name;
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
             }));
}

void Dit::to(at::Device device) {
  parameters_.to(device);
  bind();
}

void Dit::save(const std::string& folder) const { parameters_.save(folder, dit_config_json(config_)); }

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
  return patches_(pixels.to(patches_.dtype()));
}

Tensor Dit::embed_timesteps(const Tensor& t) const {
  return time_2_(at::silu(time_1_(timestep_sinusoid(t, kSinusoids).to(time_1_.dtype()))));
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

Tensor Dit::run_block(const Block& block, const Tensor& tokens, const Tensor& condition, ops::Routing& routing,
                      Tensor* loss) const {
  const std::vector<Tensor> m = block.modulation(condition).chunk(6, -1);
  auto attended = layers::moh_layer(block.attention, block.setting, modulated_norm(tokens, m[0], m[1]),
                                    {.balance_loss = loss != nullptr},
                                    [](layers::ProjectedHeads heads, const layers::Gates& gates) {
                                      return layers::attend_to(heads.query, heads.key, heads.value, gates, {});
                                    });
  routing = std::move(attended.routing);
  if (loss != nullptr) *loss = attended.load_balance_loss;
  const Tensor middle = added(tokens, m[2], attended.y);
  const Tensor hidden = block.fc1(modulated_norm(middle, m[3], m[4]), ops::Activation::kGeluTanh);
  return added(middle, m[5], block.fc2(hidden));
}

// The routing comes out of the segment, whose probabilities the load-balance loss is computed from outside: once.
Tensor Dit::recomputed_block(std::size_t index, const Tensor& tokens, const Tensor& condition, ops::Routing& routing,
                             Tensor* loss) const {
  const Block& block = blocks_[index];
  const bool routes = block.router != nullptr;
  const auto segment = [this, &block](const std::vector<Tensor>& inputs) -> std::vector<Tensor> {
    ops::Routing inside;
    Tensor after = run_block(block, inputs[0], inputs[1], inside, nullptr);
    if (block.router == nullptr) return {after};
    return {after, inside.probabilities, inside.gates.detach(), inside.indices};
  };
  const auto parameters = parameters_.under("blocks." + std::to_string(index) + ".");
  auto results = layers::recomputed(segment, {tokens, condition}, parameters, routes ? 2 : 1);
  if (routes) {
    routing = {results[2], results[3], results[1]};
    if (loss != nullptr) *loss = block.router->balance_loss(block.setting, routing);
  }
  return results[0];
}

DitOutput Dit::forward(const Tensor& x, const Tensor& t, const Tensor& y, bool balance_loss, bool recompute) const {
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
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    ops::Routing routing;
    Tensor loss;
    Tensor* const wanted = balance_loss ? &loss : nullptr;
    tokens = recompute ? recomputed_block(i, tokens, condition, routing, wanted)
                       : run_block(blocks_[i], tokens, condition, routing, wanted);
    check_interrupt();
    if (config_.moh) output.routing.push_back(std::move(routing));
    if (loss.defined()) output.balance_losses.push_back(loss);
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
