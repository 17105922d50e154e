// MoH-ViT: the paper's image classifier on the authors' tensor names, and its dense twin.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moh/io/checkpoint.h"
#include "moh/layers/vit_attention.h"
#include "moh/models/parameters.h"
#include "moh/models/vit_config.h"
#include "moh/ops/routing.h"

namespace moh::models {

struct VitInput {
  at::Tensor images;      // [B, 3, height, width], normalised; any size
  bool training = false;  // drop path, drawn from the default generator, and the load-balance losses
  // Where the images are some of a batch's: drop path is drawn for all `count`, and these are number `places` [B] of
  // them. So processes whose generators agree draw what one would that has the whole batch.
  struct Drawn {
    std::int64_t count = 0;  // 0: the images are all
    at::Tensor places;
  };
  Drawn drawn = {};
  bool recompute = false;  // blocks keep their inputs alone for the backward pass
};

struct VitOutput {
  at::Tensor logits;    // [B, classes]
  at::Tensor features;  // [B, C]: mean over the last stage's tokens, before the head
  struct Layer {
    std::string name;      // "block3.7.attn"
    ops::Routing routing;  // gates undefined in a dense model
  };
  std::vector<Layer> layers;
  std::vector<at::Tensor> layer_losses;  // in training: load-balance loss of each layer that routes
  at::Tensor load_balance_loss;          // their mean, without beta; undefined if there are none
};

// Every tensor of the model, in the order in which it is saved, with the authors' names and shapes.
ParameterSpecs vit_parameters(const VitConfig& config);

// The router of every layer that has one, and what it has to know in a stage.
constexpr const char* kVitRouter = "two-stage";
layers::RouterSetting vit_router_setting(const VitConfig& config, std::size_t stage);

class Vit {
 public:
  // Takes the tensors by name; an Error names what is missing, left over, or of the wrong shape. Position tables, which
  // old checkpoints may carry, follow from the image size and are made anew.
  Vit(VitConfig config, io::NamedTensors tensors);

  // Random weights as the authors draw them; the same for the same seed.
  static Vit initialize(const VitConfig& config, std::uint64_t seed);
  // A folder with config.json and model.safetensors, beside which training may have left averaged weights in
  // ema.safetensors. `weights`: model, ema, or auto (the averaged ones if they are there).
  static Vit load(const std::string& folder, std::optional<at::ScalarType> dtype = std::nullopt,
                  const std::string& weights = "model");
  // config.json and model.safetensors; the folder is made if need be.
  void save(const std::string& folder) const;

  VitOutput forward(const VitInput& input) const;

  const VitConfig& config() const { return config_; }
  // Pictures of another size from now on; position tables are made anew, for distances as the weights know them.
  void set_image_size(std::int64_t pixels);
  const io::NamedTensors& parameters() const { return parameters_.tensors(); }
  std::vector<bool> decays() const { return parameters_.decays(); }
  std::int64_t num_parameters() const { return parameters_.count(); }
  at::Device device() const { return parameters_.device(); }
  void to(at::Device device);
  void set_requires_grad(bool requires_grad) { parameters_.set_requires_grad(requires_grad); }

  // What attention in a stage knows of a map of this size.
  const layers::VitPlace& place(std::size_t stage, layers::MapSize map) const;
  // One attention layer's tensors, and how a stage's layers run.
  const layers::VitAttentionWeights& attention(std::size_t stage, std::size_t block) const {
    return stages_[stage].blocks[block].attention;
  }
  layers::VitAttentionOptions attention_options(std::size_t stage) const;

 private:
  struct Block {
    std::string name;
    at::Tensor norm1_weight, norm1_bias, norm2_weight, norm2_bias;
    layers::VitAttentionWeights attention;
    layers::Linear fc1, fc2;
    at::Tensor conv_weight, conv_bias;
    double drop_path = 0;
  };
  struct Stage {
    at::Tensor patch_weight, patch_bias, patch_norm_weight, patch_norm_bias, norm_weight, norm_bias;
    std::vector<Block> blocks;
  };
  struct Cache;  // what follows from map sizes and, without gradients, from weights

  void bind();
  at::Tensor position_bias(const Block& block, const layers::VitPlace& place) const;
  layers::MohLayerOutput attend(std::size_t stage, const Block& block, const at::Tensor& x, layers::MapSize map,
                                bool balance_loss) const;
  // x [B, N, C] after a block; `kept`: what drop path leaves of its two branches. Puts the routing into `routing` and,
  // if wanted, the load-balance loss into `loss`.
  at::Tensor run_block(std::size_t stage, const Block& block, const at::Tensor& x, layers::MapSize map,
                       const std::vector<at::Tensor>& kept, ops::Routing& routing, at::Tensor* loss) const;
  at::Tensor recomputed_block(std::size_t stage, const Block& block, const at::Tensor& x, layers::MapSize map,
                              const std::vector<at::Tensor>& kept, ops::Routing& routing, at::Tensor* loss) const;
  at::Tensor mlp(const Block& block, const at::Tensor& x, layers::MapSize map) const;

  VitConfig config_;
  Parameters parameters_;
  std::vector<Stage> stages_;
  layers::Linear head_;
  std::shared_ptr<Cache> cache_;
};

}  // namespace moh::models
