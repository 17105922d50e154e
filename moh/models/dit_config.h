// The configuration of a DiT, dense or MoH, and its presets. Head counts, shared heads and K are given layer by layer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "moh/base/fields.h"

namespace moh::models {

// What config.json holds under `moh`; absent in a dense model. One entry per layer; in the file a single number stands
// for all layers.
struct DitMohConfig {
  std::vector<std::int64_t> shared_heads, top_k;
  double beta = 0.01;             // weight of the load-balance loss
  std::string gates = "authors";  // form of gates and load-balance loss (spec, section 1): "authors" or "paper"

  template <class V>
  void fields(V& visit) {
    visit("shared_heads", shared_heads, "heads that are always on, one number or one per layer");
    visit("top_k", top_k, "routed heads that a token activates, one number or one per layer");
    visit("beta", beta, "weight of the load-balance loss");
    visit("gates", gates, "form of the gates: authors or paper");
  }
};

struct DitConfig {
  std::int64_t input_size = 32, in_channels = 4, patch_size = 2, hidden_size = 1152, depth = 28, head_dim = 72;
  std::int64_t num_classes = 1000;
  double mlp_ratio = 4.0, class_dropout = 0.1;  // class_dropout > 0: the label table has a row for "no class"
  bool learn_sigma = true;
  std::string prediction_type = "epsilon";  // what the network predicts: the noise, or "v_prediction", the velocity
  std::string space = "latent";             // what x is: "latent" of the Stable Diffusion VAE, or "pixel" in [-1, 1]
  std::vector<std::string> classes;         // names, if known
  std::vector<std::int64_t> num_heads;
  std::optional<DitMohConfig> moh;

  template <class V>
  void fields(V& visit) {
    visit("input_size", input_size, "height and width of what is denoised");
    visit("in_channels", in_channels, "its channels");
    visit("patch_size", patch_size, "height and width of what becomes one token");
    visit("hidden_size", hidden_size, "width of the model");
    visit("depth", depth, "layers");
    visit("num_heads", num_heads, "attention heads, one number or one per layer");
    visit("head_dim", head_dim, "size of a head");
    visit("mlp_ratio", mlp_ratio, "hidden width of the MLP over the model's");
    visit("num_classes", num_classes, "classes");
    visit("class_dropout", class_dropout, "share of training labels that are hidden, for classifier-free guidance");
    visit("learn_sigma", learn_sigma, "the network gives the variance too");
    visit("prediction_type", prediction_type, "what is predicted: epsilon (the noise) or v_prediction (the velocity)");
    visit("space", space, "latent (of the Stable Diffusion VAE) or pixel");
    visit("classes", classes, "names of the classes");
  }

  bool predicts_velocity() const { return prediction_type == "v_prediction"; }
  std::int64_t out_channels() const { return learn_sigma ? 2 * in_channels : in_channels; }
  std::int64_t mlp_size() const { return static_cast<std::int64_t>(static_cast<double>(hidden_size) * mlp_ratio); }
  std::int64_t label_rows() const { return num_classes + (class_dropout > 0 ? 1 : 0); }
  std::int64_t shared_heads(std::int64_t layer) const { return moh ? moh->shared_heads[layer] : num_heads[layer]; }
  std::int64_t top_k(std::int64_t layer) const { return moh ? moh->top_k[layer] : 0; }
  // (shared + K) / heads over all layers; 1 for a dense model.
  double activated_share() const;
};

// Reads and checks config.json; `where` names it in errors.
DitConfig parse_dit_config(const Json& json, const std::string& where);
Json dit_config_json(const DitConfig& config);
// Errors name the key.
void check_dit_config(const DitConfig& config, const std::string& where);
// Whether config.json is that of a DiT.
bool is_dit_config(const Json& json);

// The paper's moh-dit-{s,b,l,xl}-2-{90,75}, their dense twins dit-{s,b,l,xl}-2, and small ones for 32 x 32 pixels.
std::vector<std::string> dit_presets();
bool is_dit_preset(const std::string& name);
DitConfig dit_preset(const std::string& name);

}  // namespace moh::models
