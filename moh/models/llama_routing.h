// The router of one LLaMA layer as config.json's `moh` describes it, and changes of K after loading.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "moh/models/llama_config.h"
#include "moh/ops/routing.h"

namespace moh::models {

// The choices of a layer in the router's order, and where each stands in it.
struct ChoiceOrder {
  at::Tensor order, place;
};
// Nothing for a layer whose router goes by number (no head_order in config.json).
std::optional<ChoiceOrder> choice_order(const LlamaConfig& config, std::int64_t layer, at::Device device);

struct RouterWeights {
  std::optional<at::Tensor> wg, wg_1, wg_0;  // of a two-stage router, see ops::route_two_stage
  std::optional<ChoiceOrder> order = {};     // of the layer, on the input's device; absent: made for the call
};

// input [B, T, C] of the attention; query [B, T, H, D] before RoPE, which a two-stage router does not need. The gates
// are those of the heads as numbered; indices and probabilities count the choices (heads, or groups of them) in the
// router's order.
//
// `select` kv-group: a group's query is the queries of its heads as one vector, so its norm is the root of the sum of
// their squared norms, and a group of one head is the paper's router. All heads of a group get its gate, so the keys
// and values of a KV head that was not chosen are not read.
ops::Routing route_layer(const LlamaConfig& config, std::int64_t layer, const at::Tensor& input,
                         const at::Tensor& query, const RouterWeights& weights);

// K of a model at run time. Both keep the shared heads.
//
// The same K in every layer; layers with fewer routed heads use all of them.
void set_top_k(LlamaConfig& config, std::int64_t top_k);
// A share of the heads over all layers. Layers keep their proportions: between the share that config.json asks for and
// all heads (or the shared ones alone, downwards) every layer goes the same part of its way, in whole choices whose
// total is the share.
void set_activated_share(LlamaConfig& config, double activated);

}  // namespace moh::models
