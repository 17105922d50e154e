// Models of the LLaMA family (llama_family.h) for causal language modelling, dense or MoH, on Hugging Face's tensor
// names.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moh/io/checkpoint.h"
#include "moh/layers/moh_layer.h"
#include "moh/layers/rope.h"
#include "moh/models/llama_config.h"
#include "moh/models/llama_routing.h"
#include "moh/models/parameters.h"
#include "moh/ops/routing.h"

namespace moh::models {

// Keys (after RoPE) and values of past tokens, one buffer [B, Hkv, capacity, D] per layer: a head's keys lie together,
// so that a decode step reads memory in long runs and nothing of heads that no token selected.
struct KvCache {
  std::vector<at::Tensor> key, value;
  std::int64_t length = 0, capacity = 0;
};

// Sequences of any lengths in one pass, their keys and values in pages: what a server computes in a step
// (moh/serve/engine.h). The rows of all of them are the tokens of one batch.
struct PagedKeys {
  std::vector<at::Tensor>* pools;  // per layer [P, Hkv, page, 2 D]: keys, then values; written
  at::Tensor sequences, pages;     // see ops::head_attention_paged
  at::Tensor slots;                // [T] int64: token t's key goes to page slots[t] / page, place slots[t] % page
};

// Some layers by themselves, as conversion works.
struct LayerRange {
  std::int64_t first, count;
  at::Tensor hidden;         // [B, T, C], what layer `first` reads
  bool heads_only = false;   // the last layer's heads are all that is wanted of it (keep_heads)
  at::Tensor attended = {};  // what layer `first` is to take for its attention's output, which is then not computed
};

struct LlamaInput {
  at::Tensor ids = {};                            // [B, T] int64
  std::optional<LayerRange> layers = {};          // these alone, from hidden states instead of ids, without logits
  std::optional<at::Tensor> position_ids = {};    // [T] or [B, T]; default: 0.. or the cache's length..
  std::optional<at::Tensor> attention_mask = {};  // [B, S] of 0 and 1 over all keys; 0: padding
  KvCache* cache = nullptr;                       // appended to
  const PagedKeys* paged = nullptr;               // instead of a cache: ids [1, T]; needs position_ids
  bool last_only = false;                         // logits of the last token alone, [B, 1, V]
  at::Tensor logit_rows = {};                     // [L] int64: logits of these tokens alone, [B, L, V]
  bool keep_hidden = false;                       // record the input of every layer
  bool keep_router_inputs = false;                // record what the routers see
  bool keep_heads = false;                        // record the heads' outputs
  bool leaf_gates = false;                        // gates are leaves: their gradient is theirs alone, not the router's
  at::Tensor documents = {};                      // [B, T]: a token sees those of its own number alone; no cache
  bool balance_loss = false;                      // wanted: training alone needs it
  bool recompute = false;                         // layers keep their inputs alone for the backward pass
  bool no_logits = false;                         // last_hidden is all that is wanted
};

struct RouterInput {
  at::Tensor input;  // [B, T, C], the attention's
  at::Tensor query;  // [B, T, H, D] before RoPE
};

struct LlamaOutput {
  at::Tensor logits;                       // [B, T, V]
  std::vector<at::Tensor> hidden;          // per layer [B, T, C]; only with keep_hidden
  std::vector<RouterInput> router_inputs;  // per layer; only with keep_router_inputs
  std::vector<at::Tensor> heads;           // per layer [B, T, H, D], gated; only with keep_heads
  at::Tensor range_hidden;            // [B, T, C], what a LayerRange leaves; with heads_only the attention's output
  at::Tensor last_hidden;             // [B, T, C] after the final norm
  std::vector<ops::Routing> routing;  // one per layer of a MoH model (all-shared layers have empty indices)
  at::Tensor load_balance_loss;  // if wanted: mean over the layers that route, without beta; undefined if none does
};

// Every tensor of the model, in the order in which it is saved.
ParameterSpecs llama_parameters(const LlamaConfig& config);

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
  at::Tensor embed(const at::Tensor& ids) const;          // what layer 0 reads, [B, T, C]
  at::Tensor logits(const at::Tensor& hidden) const;      // of normed hidden states, [B, T, V]
  at::Tensor final_norm(const at::Tensor& hidden) const;  // of what the last layer leaves
  KvCache make_cache(std::int64_t batch, std::int64_t capacity) const;

  const LlamaConfig& config() const { return config_; }
  LlamaConfig& mutable_config() { return config_; }
  const io::NamedTensors& parameters() const { return parameters_.tensors(); }
  std::vector<at::Tensor> head_parameters() const;  // what logits() computes with
  std::vector<bool> decays() const { return parameters_.decays(); }
  std::int64_t num_parameters() const { return parameters_.count(); }
  at::Device device() const { return parameters_.device(); }
  void to(at::Device device);
  at::ScalarType dtype() const { return embedding_.scalar_type(); }
  // From now on products are made row by row by weights stored anew (layers::Linear::packed), a second copy of them.
  // `folder`: where the model is from; blocks that a GGUF file has in this storage are kept. The head has 8 bits where
  // the rest has 4. Returns the bytes of the
  // new weights.
  std::int64_t pack_weights(ops::WeightStorage storage = ops::WeightStorage::kSame, const std::string& folder = "");
  bool is_packed() const { return is_packed_; }
  void set_requires_grad(bool requires_grad) { parameters_.set_requires_grad(requires_grad); }

 private:
  struct Layer {
    layers::MohLayer attention;
    std::shared_ptr<const layers::Router> router;
    std::optional<layers::ChoiceOrder> order;
    layers::Linear gate, up, down;
    std::optional<at::Tensor> before_attention, after_attention, before_mlp, after_mlp;  // norms
    std::optional<at::Tensor> q_norm, k_norm;
  };
  void bind();
  // What all layers of a forward pass share.
  struct Pass {
    const LlamaInput& input;
    layers::RopeTable rope, local_rope;
    std::optional<at::Tensor> bias;
    std::vector<at::Tensor> balance_losses;
  };
  // The heads' outputs from their projections: positions, cache, attention.
  at::Tensor attend(std::int64_t index, layers::ProjectedHeads heads, const layers::Gates& gates,
                    const Pass& pass) const;
  at::Tensor attention(std::int64_t index, const layers::RouterSetting& setting, const at::Tensor& x, Pass& pass,
                       LlamaOutput& output) const;
  // Hidden states after layer `index`; of its attention alone if `heads_only`.
  at::Tensor run_layer(std::int64_t index, const layers::RouterSetting& setting, const at::Tensor& hidden, Pass& pass,
                       LlamaOutput& output, bool heads_only = false) const;
  at::Tensor recomputed_layer(std::int64_t index, const layers::RouterSetting& setting, const at::Tensor& hidden,
                              Pass& pass, LlamaOutput& output) const;

  LlamaConfig config_;
  Parameters parameters_;
  std::vector<Layer> layers_;
  at::Tensor embedding_, final_norm_;
  layers::Linear lm_head_;
  bool is_packed_ = false;
  at::Tensor inverse_frequencies_, local_frequencies_;  // the second: of layers with a window, if they differ
};

}  // namespace moh::models
