// Models of the LLaMA family (llama_family.h) for causal language modelling, dense or MoH, on Hugging Face's tensor
// names.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "moh/io/checkpoint.h"
#include "moh/layers/rope.h"
#include "moh/models/llama_config.h"
#include "moh/models/llama_routing.h"
#include "moh/models/parameter.h"
#include "moh/ops/routing.h"

namespace moh::models {

// Keys (after RoPE) and values of past tokens, one buffer [B, Hkv, capacity, D] per layer: a head's keys lie together,
// so that a decode step reads memory in long runs and nothing of heads that no token selected.
struct KvCache {
  std::vector<at::Tensor> key, value;
  std::int64_t length = 0, capacity = 0;
};

struct LlamaInput {
  at::Tensor ids;                                 // [B, T] int64
  std::optional<at::Tensor> position_ids = {};    // [T] or [B, T]; default: 0.. or the cache's length..
  std::optional<at::Tensor> attention_mask = {};  // [B, S] of 0 and 1 over all keys; 0: padding
  KvCache* cache = nullptr;                       // appended to
  bool last_only = false;                         // logits of the last token alone, [B, 1, V]
  bool keep_hidden = false;                       // record the input of every layer
  bool keep_router_inputs = false;                // record what the routers see
  bool leaf_gates = false;                        // gates are leaves: their gradient is theirs alone, not the router's
};

struct RouterInput {
  at::Tensor input;  // [B, T, C], the attention's
  at::Tensor query;  // [B, T, H, D] before RoPE
};

struct LlamaOutput {
  at::Tensor logits;                       // [B, T, V]
  std::vector<at::Tensor> hidden;          // per layer [B, T, C]; only with keep_hidden
  std::vector<RouterInput> router_inputs;  // per layer; only with keep_router_inputs
  at::Tensor last_hidden;                  // [B, T, C] after the final norm
  std::vector<ops::Routing> routing;       // one per layer of a MoH model (all-shared layers have empty indices)
  at::Tensor load_balance_loss;            // mean over the layers that route, without beta; undefined if none does
};

// Every tensor of the model, in the order in which it is saved. lm_head is absent when embeddings are tied.
std::vector<ParameterSpec> llama_parameters(const LlamaConfig& config);

class Llama {
 public:
  // Takes the tensors by name; an Error names what is missing, left over, or of the wrong shape.
  Llama(LlamaConfig config, io::NamedTensors tensors);

  // Random weights: normal(0, initializer_range), norms one, biases zero; the same for the same seed.
  static Llama initialize(const LlamaConfig& config, std::uint64_t seed);
  // A Hugging Face folder. Weights keep their type unless `dtype` says otherwise, and stay in a map of the file
  // (io::load_tensors).
  static Llama load(const std::string& folder, std::optional<at::ScalarType> dtype = std::nullopt,
                    ReadAs as = ReadAs::kAuto);
  // config.json and model.safetensors; the folder is made if need be.
  void save(const std::string& folder) const;

  LlamaOutput forward(const LlamaInput& input) const;
  KvCache make_cache(std::int64_t batch, std::int64_t capacity) const;

  const LlamaConfig& config() const { return config_; }
  LlamaConfig& mutable_config() { return config_; }
  const io::NamedTensors& parameters() const { return parameters_; }
  std::int64_t num_parameters() const;
  at::Device device() const { return embedding_.device(); }
  void to(at::Device device);
  void set_requires_grad(bool requires_grad);

 private:
  struct Layer {
    at::Tensor input_norm, q, k, v, o, post_norm, gate, up, down;
    std::optional<at::Tensor> q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias;
    std::optional<at::Tensor> q_norm, k_norm;
    RouterWeights router;
  };
  void bind();
  at::Tensor attention(std::int64_t index, const at::Tensor& x, const layers::RopeTable& rope,
                       const std::optional<at::Tensor>& bias, const LlamaInput& input, LlamaOutput& output,
                       std::vector<at::Tensor>& balance_losses) const;

  LlamaConfig config_;
  io::NamedTensors parameters_;
  std::vector<Layer> layers_;
  at::Tensor embedding_, final_norm_, lm_head_;
  at::Tensor inverse_frequencies_;
};

}  // namespace moh::models
