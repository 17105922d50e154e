// The configuration of a MoH-ViT (spec, section 2): four stages, each with its own width, heads and kind of attention.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "moh/base/fields.h"

namespace moh::models {

// Per stage. Absent from a dense model, whose heads all run, without gates.
struct VitMohConfig {
  std::vector<std::int64_t> shared_heads = {1, 1, 1, 1}, top_k = {0, 0, 0, 0};
  double beta = 0.01;     // weight of the load-balance loss
  bool two_stage = true;  // false: shared and routed heads are not weighed against each other (the paper's ablation)

  template <class V>
  void fields(V& visit) {
    visit("shared_heads", shared_heads, "heads that every token uses, per stage");
    visit("top_k", top_k, "routed heads that a token selects, per stage");
    visit("beta", beta, "weight of the load-balance loss");
    visit("two_stage", two_stage, "weigh shared against routed heads (matrix wg_0)");
  }
};

struct VitConfig {
  std::int64_t image_size = 224, patch_size = 4, num_classes = 1000;
  std::int64_t pretrain_size = 0;  // image size that the position bias was trained for; 0: image_size
  std::int64_t window_size = 3;
  std::vector<std::int64_t> embed_dims = {72, 144, 288, 576}, num_heads = {3, 6, 12, 24}, depths = {5, 5, 22, 5},
                            sr_ratios = {8, 4, 2, 1};  // 1: full attention
  std::vector<double> mlp_ratios = {8, 8, 4, 4};
  double drop_path = 0.0;  // of the last block; grows linearly from 0
  // What the weights expect of a picture.
  std::array<double, 3> mean = {0.485, 0.456, 0.406}, std = {0.229, 0.224, 0.225};
  double crop = 0.875;               // evaluation: share of the resized picture that the centre crop keeps
  std::vector<std::string> classes;  // names, or none
  std::optional<VitMohConfig> moh;

  template <class V>
  void fields(V& visit) {
    visit("image_size", image_size, "pixels, height and width");
    visit("patch_size", patch_size, "pixels a token of the first stage");
    visit("num_classes", num_classes, "classes");
    visit("pretrain_size", pretrain_size, "image size that the position bias was trained for; 0: image_size");
    visit("window_size", window_size, "tokens of the local window, odd");
    visit("embed_dims", embed_dims, "width per stage");
    visit("num_heads", num_heads, "heads per stage");
    visit("depths", depths, "blocks per stage");
    visit("sr_ratios", sr_ratios, "tokens per pooled key, per side and stage; 1: full attention");
    visit("mlp_ratios", mlp_ratios, "hidden width of the MLP, before the two thirds of the gated form");
    visit("drop_path", drop_path, "share of residual branches dropped in the last block, growing from 0");
    visit("mean", mean, "of red, green and blue, to normalise pictures");
    visit("std", std, "of red, green and blue, to normalise pictures");
    visit("crop", crop, "evaluation: share of the resized picture that the centre crop keeps");
    visit("classes", classes, "names of the classes");
  }

  std::int64_t shared_heads(std::size_t stage) const { return moh ? moh->shared_heads[stage] : num_heads[stage]; }
  std::int64_t top_k(std::size_t stage) const { return moh ? moh->top_k[stage] : 0; }
  std::int64_t mlp_hidden(std::size_t stage) const;  // of one half of the gated MLP
  // Side of a stage's map for an image side: the first patch embedding is 7x7, the others 3x3, padded by half.
  std::int64_t map_size(std::size_t stage, std::int64_t image) const;
  // (shared + K) / heads over all layers; 1 for a dense model.
  double activated_share() const;
};

// Reads and checks config.json, which says `model_type: moh-vit`; `where` names it in errors.
VitConfig parse_vit_config(const Json& json, const std::string& where);
Json vit_config_json(const VitConfig& config);
bool is_vit_config(const Json& json);
void check_vit_config(const VitConfig& config, const std::string& where);

// Presets: moh-vit-s-80, moh-vit-s-75, moh-vit-b-75, moh-vit-b-50 (paper, table 2), moh-vit-cifar (for 32x32 pictures
// and small machines), and their dense twins without `moh-`.
std::vector<std::string> vit_presets();
bool is_vit_preset(const std::string& name);
VitConfig vit_preset(const std::string& name);

}  // namespace moh::models
