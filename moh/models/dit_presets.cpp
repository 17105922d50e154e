// Named DiT models: the paper's eight MoH-DiT (appendix, model configurations), the DiT that each is compared with, and
// small ones that learn 32 x 32 pixels on a desktop machine.
#include "moh/base/error.h"
#include "moh/models/dit_config.h"

namespace moh::models {
namespace {

using PerLayer = std::vector<std::int64_t>;

// `values` in runs of `lengths` layers.
PerLayer runs(const PerLayer& values, const PerLayer& lengths) {
  PerLayer all;
  for (std::size_t i = 0; i < values.size(); ++i) all.insert(all.end(), lengths[i], values[i]);
  return all;
}

DitConfig sized(std::int64_t depth, std::int64_t hidden_size, std::int64_t heads, std::int64_t head_dim) {
  DitConfig config;
  config.depth = depth;
  config.hidden_size = hidden_size;
  config.head_dim = head_dim;
  config.num_heads.assign(static_cast<std::size_t>(depth), heads);
  return config;
}

// 32 x 32 colour pictures: 256 patches of 2 x 2.
DitConfig pixels(DitConfig config) {
  config.in_channels = 3;
  config.num_classes = 10;
  config.space = "pixel";
  return config;
}

DitConfig with_moh(DitConfig config, const PerLayer& shared_heads, const PerLayer& top_k) {
  config.moh.emplace();
  config.moh->shared_heads = shared_heads;
  config.moh->top_k = top_k;
  return config;
}

DitConfig with_heads(DitConfig config, PerLayer heads) {
  config.num_heads = std::move(heads);
  return config;
}

DitConfig size_s() { return sized(12, 384, 6, 64); }
DitConfig size_b() { return sized(12, 768, 12, 64); }
DitConfig size_l() { return sized(24, 1024, 16, 64); }
DitConfig size_xl() { return sized(28, 1152, 16, 72); }
DitConfig size_tiny() { return pixels(sized(6, 192, 8, 24)); }
DitConfig size_mini() { return pixels(sized(10, 256, 8, 32)); }

struct Preset {
  const char* name;
  DitConfig (*make)();
};

const Preset kPresets[] = {
    {"moh-dit-s-2-90",
     [] {
       return with_moh(size_s(), runs({3, 6}, {8, 4}), runs({2, 0}, {8, 4}));
     }},
    {"moh-dit-s-2-75",
     [] {
       return with_moh(size_s(), runs({2, 3, 6}, {2, 8, 2}), runs({1, 2, 0}, {6, 4, 2}));
     }},
    {"dit-s-2", size_s},
    {"moh-dit-b-2-90",
     [] {
       return with_moh(size_b(), runs({6, 7, 12}, {5, 5, 2}), runs({4, 0}, {10, 2}));
     }},
    {"moh-dit-b-2-75",
     [] {
       return with_moh(size_b(), runs({4, 6, 12}, {2, 8, 2}), runs({2, 3, 0}, {2, 8, 2}));
     }},
    {"dit-b-2", size_b},
    {"moh-dit-l-2-90",
     [] {
       return with_moh(with_heads(size_l(), runs({8, 16, 24}, {8, 8, 8})), runs({8, 16}, {8, 16}),
                       runs({0, 3}, {16, 8}));
     }},
    {"moh-dit-l-2-75",
     [] {
       return with_moh(with_heads(size_l(), runs({8, 16, 24}, {8, 8, 8})), runs({8, 12}, {16, 8}),
                       runs({0, 4}, {8, 16}));
     }},
    {"dit-l-2", size_l},
    {"moh-dit-xl-2-90",
     [] {
       return with_moh(with_heads(size_xl(), runs({8, 16, 24}, {9, 10, 9})), runs({8, 16}, {9, 19}),
                       runs({0, 3}, {19, 9}));
     }},
    {"moh-dit-xl-2-75",
     [] {
       return with_moh(with_heads(size_xl(), runs({8, 16, 24}, {9, 10, 9})), runs({8, 10, 14}, {9, 10, 9}),
                       runs({0, 2}, {9, 19}));
     }},
    {"dit-xl-2", size_xl},
    {"moh-dit-pixel-tiny", [] { return with_moh(size_tiny(), PerLayer(6, 4), PerLayer(6, 2)); }},
    {"dit-pixel-tiny", size_tiny},
    {"moh-dit-pixel-mini", [] { return with_moh(size_mini(), PerLayer(10, 4), PerLayer(10, 2)); }},
    {"dit-pixel-mini", size_mini},
};

}  // namespace

std::vector<std::string> dit_presets() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

bool is_dit_preset(const std::string& name) {
  const auto names = dit_presets();
  return std::find(names.begin(), names.end(), name) != names.end();
}

DitConfig dit_preset(const std::string& name) {
  for (const Preset& preset : kPresets) {
    if (name == preset.name) return preset.make();
  }
  const std::string near = nearest_name(name, dit_presets());
  fail("[preset] unknown preset `", name, "`",
       near.empty() ? "; `moh info` lists them" : ", did you mean `" + near + "`?");
}

}  // namespace moh::models
