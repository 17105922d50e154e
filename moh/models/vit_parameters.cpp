// The name table of MoH-ViT: every tensor under the authors' name, and how it is drawn at first.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

#include "moh/models/vit.h"

namespace moh::models {
namespace {

constexpr std::int64_t kBiasHidden = 512;  // of the MLP that makes the position bias

// 1-D tensors, biases and the small tables of attention do not decay; learnable_tokens, learnable_bias and the routers
// do (spec, section 2).
bool decays(const std::string& name, const std::vector<std::int64_t>& shape) {
  if (shape.size() == 1 || name.ends_with(".bias")) return false;
  for (const char* part : {"query_embedding", "relative_pos_bias_local", "cpb", "temperature"}) {
    if (name.find(part) != std::string::npos) return false;
  }
  return true;
}

}  // namespace

layers::RouterSetting vit_router_setting(const VitConfig& config, std::size_t stage) {
  layers::RouterSetting setting;
  setting.hidden = config.embed_dims[stage];
  setting.choices = config.num_heads[stage];
  setting.shared = config.shared_heads(stage);
  setting.top_k = config.top_k(stage);
  setting.gates = setting.balance = layers::GateForm::kAuthors;
  setting.two_stage = !config.moh || config.moh->two_stage;
  return setting;
}

ParameterSpecs vit_parameters(const VitConfig& config) {
  ParameterSpecs specs;
  const auto tensor = [&](const std::string& name, std::vector<std::int64_t> shape) {
    const bool does = decays(name, shape);
    specs.push_back({name, std::move(shape), does});
  };
  const auto with_bias = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    tensor(name + ".weight", shape);
    tensor(name + ".bias", {shape[0]});
  };
  std::int64_t channels = 3;
  for (std::size_t i = 0; i < config.embed_dims.size(); ++i) {
    const std::string number = std::to_string(i + 1);
    const std::int64_t dim = config.embed_dims[i], heads = config.num_heads[i], head_dim = dim / heads;
    const std::int64_t places = config.window_size * config.window_size, kernel = i == 0 ? 7 : 3;
    with_bias("patch_embed" + number + ".proj", {dim, channels, kernel, kernel});
    with_bias("patch_embed" + number + ".norm", {dim});
    channels = dim;
    for (std::int64_t block = 0; block < config.depths[i]; ++block) {
      const std::string prefix = "block" + number + "." + std::to_string(block) + ".", attention = prefix + "attn.";
      const bool aggregated = config.sr_ratios[i] > 1;
      with_bias(prefix + "norm1", {dim});
      tensor(attention + "temperature", {heads, 1, 1});
      tensor(attention + "query_embedding", {heads, 1, head_dim});
      if (aggregated) {
        tensor(attention + "relative_pos_bias_local", {heads, places});
        tensor(attention + "learnable_tokens", {heads, head_dim, places});
        tensor(attention + "learnable_bias", {heads, 1, places});
        with_bias(attention + "q", {dim, dim});
        with_bias(attention + "kv", {2 * dim, dim});
      } else {
        with_bias(attention + "qkv", {3 * dim, dim});
      }
      with_bias(attention + "proj", {dim, dim});
      if (aggregated) {
        with_bias(attention + "sr", {dim, dim, 1, 1});
        with_bias(attention + "norm", {dim});
      }
      with_bias(attention + "cpb_fc1", {kBiasHidden, 2});
      with_bias(attention + "cpb_fc2", {heads, kBiasHidden});
      if (config.moh) {
        for (auto& each : layers::router_tensors_by_name(kVitRouter, vit_router_setting(config, i))) {
          tensor(attention + each.name, std::move(each.shape));
        }
      }
      with_bias(prefix + "norm2", {dim});
      const std::int64_t hidden = config.mlp_hidden(i);
      with_bias(prefix + "mlp.fc1", {2 * hidden, dim});
      with_bias(prefix + "mlp.dwconv.dwconv", {hidden, 1, 3, 3});
      with_bias(prefix + "mlp.fc2", {dim, hidden});
    }
    with_bias("norm" + number, {dim});
  }
  with_bias("head", {config.num_classes, channels});
  return specs;
}

Vit Vit::initialize(const VitConfig& config, std::uint64_t seed) {
  check_vit_config(config, "vit");
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  return Vit(config, draw_parameters(vit_parameters(config), [&](const ParameterSpec& spec, at::Tensor& tensor) {
               const auto ends = [&](const char* ending) { return spec.name.ends_with(ending); };
               if (ends("temperature")) {
                 tensor.fill_(std::log(std::exp(1 / 0.24) - 1));  // softplus gives 1 / 0.24
               } else if (ends("relative_pos_bias_local")) {
                 tensor.normal_(0.0, 0.0004, generator);
               } else if (tensor.dim() == 4) {  // convolutions, by fan-out
                 const bool depthwise = spec.shape[1] == 1;
                 const double fan_out =
                     static_cast<double>(spec.shape[2] * spec.shape[3] * (depthwise ? 1 : spec.shape[0]));
                 tensor.normal_(0.0, std::sqrt(2.0 / fan_out), generator);
               } else if (tensor.dim() == 1) {
                 if (ends(".weight")) tensor.fill_(1.0);  // of norms
               } else if (!ends("learnable_bias")) {
                 tensor.normal_(0.0, 0.02, generator);
               }
             }));
}

}  // namespace moh::models
