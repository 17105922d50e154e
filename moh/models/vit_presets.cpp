// Named vision transformers: the paper's four (table 2), and one for 32x32 pictures that two cores train in minutes.
#include "moh/models/vit_config.h"

namespace moh::models {
namespace {

struct Preset {
  const char* name;  // with `moh-` before it; the dense twin is `twin`, which several presets may share
  const char* twin;
  VitConfig (*size)();
  std::vector<std::int64_t> shared_heads, top_k;
};

VitConfig size_s() {
  VitConfig config;
  config.drop_path = 0.45;
  return config;
}

VitConfig size_b() {
  VitConfig config;
  config.embed_dims = {96, 192, 384, 768};
  config.num_heads = {4, 8, 16, 32};
  config.depths = {5, 5, 23, 5};
  config.drop_path = 0.60;
  return config;
}

VitConfig size_cifar() {
  VitConfig config;
  config.image_size = 32;
  config.patch_size = 2;
  config.num_classes = 10;
  config.embed_dims = {32, 64, 128, 192};
  config.num_heads = {2, 4, 8, 12};
  config.depths = {1, 2, 3, 1};
  config.sr_ratios = {4, 2, 2, 1};
  config.mlp_ratios = {4, 4, 4, 4};
  config.drop_path = 0.05;
  config.crop = 1;
  config.mean = {0.4914, 0.4822, 0.4465};
  config.std = {0.2470, 0.2435, 0.2616};
  return config;
}

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = {
      {"vit-s-80", "vit-s", size_s, {3, 6, 3, 8}, {0, 0, 6, 12}},
      {"vit-s-75", "vit-s", size_s, {3, 6, 3, 4}, {0, 0, 6, 12}},
      {"vit-b-75", "vit-b", size_b, {4, 8, 4, 5}, {0, 0, 8, 16}},
      {"vit-b-50", "vit-b", size_b, {2, 2, 2, 4}, {2, 4, 6, 8}},
      {"vit-cifar", "vit-cifar", size_cifar, {1, 2, 3, 4}, {1, 1, 3, 5}},
  };
  return all;
}

}  // namespace

std::vector<std::string> vit_presets() {
  std::vector<std::string> names;
  const auto add = [&](const std::string& name) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  };
  for (const Preset& preset : presets()) {
    add(std::string("moh-") + preset.name);
    add(preset.twin);
    add(preset.name);
  }
  return names;
}

bool is_vit_preset(const std::string& name) {
  const auto names = vit_presets();
  return std::find(names.begin(), names.end(), name) != names.end();
}

VitConfig vit_preset(const std::string& name) {
  for (const Preset& preset : presets()) {
    const bool is_moh = name == std::string("moh-") + preset.name;
    if (!is_moh && name != preset.name && name != preset.twin) continue;
    VitConfig config = preset.size();
    if (is_moh) config.moh = VitMohConfig{.shared_heads = preset.shared_heads, .top_k = preset.top_k};
    return config;
  }
  std::string known;
  for (const std::string& preset : vit_presets()) known += (known.empty() ? "" : ", ") + preset;
  fail("[preset] unknown preset `", name, "`; known: ", known);
}

}  // namespace moh::models
