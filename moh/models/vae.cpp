#include "moh/models/vae.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <filesystem>
#include <unordered_set>

#include "moh/base/error.h"

namespace moh::models {
namespace {

using at::Tensor;
constexpr double kNormEps = 1e-6;
constexpr double kLeastLogVariance = -30.0, kMostLogVariance = 20.0;

std::string numbered(const std::string& name, std::int64_t i) { return name + "." + std::to_string(i); }

// Names that attention has had in older folders.
std::string present_name(std::string name) {
  for (const auto& [old, present] : {std::pair{".query.", ".to_q."}, std::pair{".key.", ".to_k."},
                                     std::pair{".value.", ".to_v."}, std::pair{".proj_attn.", ".to_out.0."}}) {
    const std::size_t at = name.find(old);
    if (name.find("attentions.") != std::string::npos && at != std::string::npos) {
      name.replace(at, std::string(old).size(), present);
    }
  }
  return name;
}

template <class T>
void read(const Json& json, const char* key, T& value, const std::string& where) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return;
  MOH_CHECK(detail::assign_json(*found, value), "[", where, "] `", key, "` cannot be ", found->dump().substr(0, 80));
}

class ParameterList {
 public:
  explicit ParameterList(const VaeConfig& config) : config_(config) {}
  void conv(const std::string& name, std::int64_t out, std::int64_t in, std::int64_t size) {
    add(name + ".weight", {out, in, size, size});
    add(name + ".bias", {out});
  }
  void vectors(const std::string& name, std::int64_t size) {
    add(name + ".weight", {size});
    add(name + ".bias", {size});
  }
  void residual(const std::string& name, std::int64_t in, std::int64_t out) {
    vectors(name + ".norm1", in);
    conv(name + ".conv1", out, in, 3);
    vectors(name + ".norm2", out);
    conv(name + ".conv2", out, out, 3);
    if (in != out) conv(name + ".conv_shortcut", out, in, 1);
  }
  void middle(const std::string& name, std::int64_t channels) {
    residual(name + ".resnets.0", channels, channels);
    if (config_.mid_block_add_attention) {
      const std::string attention = name + ".attentions.0";
      vectors(attention + ".group_norm", channels);
      for (const char* part : {".to_q", ".to_k", ".to_v", ".to_out.0"}) {
        add(attention + part + ".weight", {channels, channels});
        add(attention + part + ".bias", {channels});
      }
    }
    residual(name + ".resnets.1", channels, channels);
  }
  ParameterSpecs take() { return std::move(all_); }

 private:
  void add(const std::string& name, std::vector<std::int64_t> shape) { all_.push_back({name, std::move(shape)}); }
  const VaeConfig& config_;
  ParameterSpecs all_;
};

}  // namespace

VaeConfig parse_vae_config(const Json& json, const std::string& where) {
  MOH_CHECK(json.is_object() && json.value("_class_name", Json()) == "AutoencoderKL", "[vae] ", where,
            ": `_class_name` must be AutoencoderKL, got ",
            json.is_object() ? json.value("_class_name", Json()).dump().substr(0, 80) : "no object");
  VaeConfig config;
  read(json, "in_channels", config.in_channels, where);
  read(json, "out_channels", config.out_channels, where);
  read(json, "latent_channels", config.latent_channels, where);
  read(json, "layers_per_block", config.layers_per_block, where);
  read(json, "norm_num_groups", config.norm_num_groups, where);
  read(json, "block_out_channels", config.block_out_channels, where);
  read(json, "scaling_factor", config.scaling_factor, where);
  read(json, "shift_factor", config.shift_factor, where);
  read(json, "mid_block_add_attention", config.mid_block_add_attention, where);
  read(json, "use_quant_conv", config.use_quant_conv, where);
  read(json, "use_post_quant_conv", config.use_post_quant_conv, where);
  const auto only = [&](const char* key, const char* value) {
    const Json list = json.value(key, Json());
    for (const Json& item : list.is_array() ? list : Json::array({list.is_null() ? Json(value) : list})) {
      MOH_CHECK(item == value, "[vae] ", where, ": `", key, "` must be ", value, " throughout, got ",
                item.dump().substr(0, 80));
    }
  };
  only("down_block_types", "DownEncoderBlock2D");
  only("up_block_types", "UpDecoderBlock2D");
  only("act_fn", "silu");
  MOH_CHECK(config.in_channels > 0 && config.out_channels > 0 && config.latent_channels > 0 &&
                config.layers_per_block > 0 && config.layers_per_block < 64 && config.norm_num_groups > 0 &&
                !config.block_out_channels.empty() && config.block_out_channels.size() < 16,
            "[vae] ", where, ": channels, layers and groups must be positive");
  for (const std::int64_t channels : config.block_out_channels) {
    MOH_CHECK(channels > 0 && channels <= (1 << 16) && channels % config.norm_num_groups == 0, "[vae] ", where,
              ": `block_out_channels` ", channels, " must be a multiple of `norm_num_groups` ", config.norm_num_groups);
  }
  MOH_CHECK(std::isfinite(config.scaling_factor) && config.scaling_factor != 0, "[vae] ", where,
            ": `scaling_factor` must not be ", config.scaling_factor);
  return config;
}

ParameterSpecs vae_parameters(const VaeConfig& config) {
  ParameterList list(config);
  const auto& channels = config.block_out_channels;
  const auto levels = static_cast<std::int64_t>(channels.size());
  list.conv("encoder.conv_in", channels[0], config.in_channels, 3);
  std::int64_t width = channels[0];
  for (std::int64_t level = 0; level < levels; ++level) {
    const std::string block = numbered("encoder.down_blocks", level);
    for (std::int64_t i = 0; i < config.layers_per_block; ++i) {
      list.residual(numbered(block + ".resnets", i), width, channels[level]);
      width = channels[level];
    }
    if (level + 1 < levels) list.conv(block + ".downsamplers.0.conv", width, width, 3);
  }
  list.middle("encoder.mid_block", width);
  list.vectors("encoder.conv_norm_out", width);
  list.conv("encoder.conv_out", 2 * config.latent_channels, width, 3);
  list.conv("decoder.conv_in", width, config.latent_channels, 3);
  list.middle("decoder.mid_block", width);
  for (std::int64_t level = 0; level < levels; ++level) {
    const std::string block = numbered("decoder.up_blocks", level);
    const std::int64_t out = channels[levels - 1 - level];
    for (std::int64_t i = 0; i <= config.layers_per_block; ++i) {
      list.residual(numbered(block + ".resnets", i), width, out);
      width = out;
    }
    if (level + 1 < levels) list.conv(block + ".upsamplers.0.conv", width, width, 3);
  }
  list.vectors("decoder.conv_norm_out", width);
  list.conv("decoder.conv_out", config.out_channels, width, 3);
  if (config.use_quant_conv) list.conv("quant_conv", 2 * config.latent_channels, 2 * config.latent_channels, 1);
  if (config.use_post_quant_conv) list.conv("post_quant_conv", config.latent_channels, config.latent_channels, 1);
  return list.take();
}

Vae::Vae(VaeConfig config, io::NamedTensors tensors) : config_(std::move(config)) {
  ParameterSpecs specs = vae_parameters(config_);
  std::unordered_set<std::string> matrices;
  for (const ParameterSpec& spec : specs) {
    if (spec.shape.size() == 2) matrices.insert(spec.name);
  }
  for (auto& [name, tensor] : tensors) {
    name = present_name(name);
    const bool is_point = tensor.dim() == 4 && tensor.size(2) == 1 && tensor.size(3) == 1;
    if (is_point && matrices.contains(name)) tensor = tensor.flatten(1);  // attention as convolutions, in old folders
    if (at::isFloatingType(tensor.scalar_type())) tensor = tensor.to(at::kFloat);
  }
  parameters_ = Parameters({.model = "vae"}, std::move(specs), std::move(tensors));
}

Vae Vae::load(const std::string& folder) {
  VaeConfig config = parse_vae_config(io::load_config(folder), folder + "/config.json");
  const std::string diffusers = folder + "/diffusion_pytorch_model.safetensors";
  return Vae(std::move(config), io::load_tensors(std::filesystem::exists(diffusers) ? diffusers : folder));
}

std::string Vae::fingerprint() const {
  double sum = 0;  // in the order of the list, so that it is the same every time
  for (const auto& [name, tensor] : parameters_.tensors()) {
    const Tensor values = tensor.to(at::kDouble).flatten();
    const Tensor weights = at::linspace(1.0, 2.0, values.numel(), values.options());
    sum = sum * 0.75 + (values * weights).sum().item<double>();
  }
  return std::to_string(sum);
}

Tensor Vae::conv(const std::string& name, const Tensor& x, std::int64_t stride, std::int64_t padding) const {
  return at::conv2d(x, parameters_[name + ".weight"], parameters_[name + ".bias"], stride, padding);
}

Tensor Vae::norm(const std::string& name, const Tensor& x) const {
  return at::group_norm(x, config_.norm_num_groups, parameters_[name + ".weight"], parameters_[name + ".bias"],
                        kNormEps);
}

Tensor Vae::residual(const std::string& name, const Tensor& x) const {
  Tensor hidden = conv(name + ".conv1", at::silu(norm(name + ".norm1", x)), 1, 1);
  hidden = conv(name + ".conv2", at::silu(norm(name + ".norm2", hidden)), 1, 1);
  const bool widens = parameters_.find(name + ".conv_shortcut.weight").has_value();
  return (widens ? conv(name + ".conv_shortcut", x, 1, 0) : x) + hidden;
}

Tensor Vae::attention(const std::string& name, const Tensor& x) const {
  const Tensor tokens = norm(name + ".group_norm", x).flatten(2).transpose(1, 2);  // [N, H W, C]
  const auto project = [&](const char* part, const Tensor& in) {
    return parameters_.linear(name + part, layers::Product::kPlain)(in);
  };
  const Tensor query = project(".to_q", tokens), key = project(".to_k", tokens), value = project(".to_v", tokens);
  // One head as wide as the channels.
  const Tensor attended =
      at::scaled_dot_product_attention(query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)).squeeze(1);
  return x + project(".to_out.0", attended).transpose(1, 2).reshape(x.sizes());
}

Tensor Vae::middle(const std::string& name, Tensor x) const {
  x = residual(name + ".resnets.0", x);
  if (config_.mid_block_add_attention) x = attention(name + ".attentions.0", x);
  return residual(name + ".resnets.1", x);
}

LatentDistribution Vae::encode(const Tensor& pictures) const {
  const std::int64_t reduction = config_.reduction();
  MOH_CHECK(pictures.dim() == 4 && pictures.size(1) == config_.in_channels && pictures.size(2) % reduction == 0 &&
                pictures.size(3) % reduction == 0,
            "[vae] pictures must be [N, ", config_.in_channels, ", H, W] with H and W multiples of ", reduction,
            ", got ", pictures.sizes());
  const c10::NoGradGuard no_grad;
  const auto levels = static_cast<std::int64_t>(config_.block_out_channels.size());
  Tensor x = conv("encoder.conv_in", pictures, 1, 1);
  for (std::int64_t level = 0; level < levels; ++level) {
    const std::string block = numbered("encoder.down_blocks", level);
    for (std::int64_t i = 0; i < config_.layers_per_block; ++i) x = residual(numbered(block + ".resnets", i), x);
    if (level + 1 < levels) {  // padded on the right and below alone
      x = conv(block + ".downsamplers.0.conv", at::constant_pad_nd(x, {0, 1, 0, 1}), 2, 0);
    }
  }
  x = middle("encoder.mid_block", x);
  x = conv("encoder.conv_out", at::silu(norm("encoder.conv_norm_out", x)), 1, 1);
  if (config_.use_quant_conv) x = conv("quant_conv", x, 1, 0);
  const auto parts = x.chunk(2, 1);
  return {parts[0], parts[1].clamp(kLeastLogVariance, kMostLogVariance)};
}

Tensor Vae::scaled(const Tensor& latents) const { return (latents - config_.shift_factor) * config_.scaling_factor; }

Tensor Vae::decode(const Tensor& scaled_latents) const {
  MOH_CHECK(scaled_latents.dim() == 4 && scaled_latents.size(1) == config_.latent_channels,
            "[vae] latents must be [N, ", config_.latent_channels, ", H, W], got ", scaled_latents.sizes());
  const c10::NoGradGuard no_grad;
  const auto levels = static_cast<std::int64_t>(config_.block_out_channels.size());
  Tensor x = scaled_latents / config_.scaling_factor + config_.shift_factor;
  if (config_.use_post_quant_conv) x = conv("post_quant_conv", x, 1, 0);
  x = middle("decoder.mid_block", conv("decoder.conv_in", x, 1, 1));
  for (std::int64_t level = 0; level < levels; ++level) {
    const std::string block = numbered("decoder.up_blocks", level);
    for (std::int64_t i = 0; i <= config_.layers_per_block; ++i) x = residual(numbered(block + ".resnets", i), x);
    if (level + 1 < levels) {
      x = at::upsample_nearest2d(x, {2 * x.size(2), 2 * x.size(3)});
      x = conv(block + ".upsamplers.0.conv", x, 1, 1);
    }
  }
  return conv("decoder.conv_out", at::silu(norm("decoder.conv_norm_out", x)), 1, 1);
}

}  // namespace moh::models
