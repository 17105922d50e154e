#include "moh/models/vit_checkpoint.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <map>

#include "moh/base/error.h"
#include "moh/io/torch_file.h"

namespace moh::models {
namespace {

constexpr const char* kFirstTensor = "patch_embed1.proj.weight";

std::vector<std::string> keys_of(const std::string& weights) {
  const std::vector<std::string> averaged = {"ema", "model_ema", "state_dict_ema"}, plain = {"model", "state_dict"};
  if (weights == "ema") return averaged;
  if (weights == "model") return plain;
  MOH_CHECK(weights == "auto", "[vit] weights must be auto, ema or model, got ", weights);
  std::vector<std::string> all = averaged;
  all.insert(all.end(), plain.begin(), plain.end());
  return all;
}

io::NamedTensors read(const std::string& file, const std::string& weights) {
  if (!io::is_torch_file(file)) return io::load_tensors(file);
  const auto keys = keys_of(weights);
  MOH_CHECK(weights == "auto" || io::TorchFile(file).first_key(keys), "[vit] ", file, " has no ", weights,
            " weights (key `", keys[0], "`)");
  return io::load_torch_tensors(file, keys);
}

// Every tensor of the configuration, by name and shape, and nothing else but what the model ignores.
bool fits(const VitConfig& config, const std::map<std::string, at::Tensor>& tensors) {
  for (const ParameterSpec& spec : vit_parameters(config)) {
    const auto found = tensors.find(spec.name);
    if (found == tensors.end() || found->second.sizes() != at::IntArrayRef(spec.shape)) return false;
  }
  for (const auto& [name, tensor] : tensors) {
    if (!config.moh && name.find(".wg") != std::string::npos) return false;
  }
  return true;
}

}  // namespace

Vit load_vit_checkpoint(const std::string& file, const std::string& preset, const std::string& weights) {
  io::NamedTensors tensors = read(file, weights);
  for (auto& [name, tensor] : tensors) {
    if (at::isFloatingType(tensor.scalar_type())) tensor = tensor.to(at::kFloat);
  }
  const std::map<std::string, at::Tensor> by_name(tensors.begin(), tensors.end());
  MOH_CHECK(by_name.contains(kFirstTensor), "[vit] ", file, " has no tensor `", kFirstTensor,
            "`: not a MoH-ViT checkpoint");
  const auto head = by_name.find("head.weight");
  MOH_CHECK(head != by_name.end() && head->second.dim() == 2, "[vit] ", file, ": tensor `head.weight` is missing");
  const auto with_classes = [&](const std::string& name) {
    VitConfig config = vit_preset(name);
    config.num_classes = head->second.size(0);
    return config;
  };
  if (!preset.empty()) return Vit(with_classes(preset), std::move(tensors));
  std::vector<std::string> fitting;
  std::vector<Json> configs;
  for (const std::string& name : vit_presets()) {
    const VitConfig config = with_classes(name);
    if (!fits(config, by_name)) continue;
    const Json json = vit_config_json(config);
    if (std::find(configs.begin(), configs.end(), json) != configs.end()) continue;  // dense twins share one
    configs.push_back(json);
    fitting.push_back(name);
  }
  std::string names;
  for (const std::string& name : fitting) names += (names.empty() ? "" : ", ") + name;
  MOH_CHECK(fitting.size() == 1, "[vit] ", file,
            fitting.empty() ? " has the tensors of no preset" : " has the tensors of several presets (" + names + ")",
            "; name the right one with --preset");
  return Vit(with_classes(fitting[0]), std::move(tensors));
}

bool is_vit_checkpoint_file(const std::string& file) {
  if (!std::filesystem::is_regular_file(file)) return false;
  if (!io::is_torch_file(file)) {
    if (!file.ends_with(".safetensors")) return false;
    for (const auto& [name, tensor] : io::load_tensors(file)) {
      if (name == kFirstTensor) return true;
    }
    return false;
  }
  for (const auto& item : io::TorchFile(file).tensors(keys_of("auto"))) {
    if (item.name == kFirstTensor) return true;
  }
  return false;
}

}  // namespace moh::models
