// The attention layers of MoH-ViT (spec, section 2): aggregated attention (a window of neighbours and pooled keys) in
// the first stages, full attention in the last, both with the two-stage router in the authors' form. The weights say
// which one it is: an aggregated layer has `sr_weight`.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "moh/layers/relative_position.h"
#include "moh/ops/routing.h"

namespace moh::layers {

// What follows from the size of the map alone.
struct VitPlace {
  MapSize map, pooled;  // equal in full attention
  RelativePositions positions;
  at::Tensor scale;  // log of the number of keys that a token sees: [N] in aggregated attention, [1] in full attention

  VitPlace to(at::Device device) const;
};

// `ratio`: tokens per pooled key and side; 1 for full attention. `pretrain`: the map for which the position bias was
// trained.
VitPlace vit_place(MapSize map, std::int64_t ratio, std::int64_t window, MapSize pretrain);

struct VitAttentionWeights {
  at::Tensor query_embedding, temperature;                                                      // [H, 1, D], [H, 1, 1]
  at::Tensor q_weight, q_bias, kv_weight, kv_bias, sr_weight, sr_bias, norm_weight, norm_bias;  // aggregated
  at::Tensor local_bias, tokens, token_bias;  // aggregated: [H, W], [H, D, W], [H, 1, W] for W places of the window
  at::Tensor qkv_weight, qkv_bias;            // full
  at::Tensor proj_weight, proj_bias;
  at::Tensor fc1_weight, fc1_bias, fc2_weight, fc2_bias;  // of the position bias
  std::optional<at::Tensor> wg, wg_1, wg_0;               // router, see ops::route_two_stage

  bool aggregated() const { return sr_weight.defined(); }
};

struct VitAttentionOptions {
  std::int64_t num_heads = 1, shared_heads = 1, top_k = 0, window = 3;
  bool routed = true;        // false: a dense layer, every head with gate 1
  bool two_stage = true;     // false: shared and routed heads are not weighed against each other
  bool balance_loss = true;  // wanted: training alone needs it
  // Step by step as the authors' PyTorch code, every head computed: the same numbers, slower; to compare with.
  bool authors_form = false;
};

struct VitAttentionOutput {
  at::Tensor y;                  // [B, N, C]
  ops::Routing routing;          // undefined in a dense layer
  at::Tensor load_balance_loss;  // scalar; undefined when nothing is routed
};

// The position bias [H, N, M] of a layer.
at::Tensor vit_position_bias(const VitAttentionWeights& weights, const VitPlace& place);

// x [B, N, C].
VitAttentionOutput vit_attention(const at::Tensor& x, const VitAttentionWeights& weights, const VitPlace& place,
                                 const at::Tensor& position_bias, const VitAttentionOptions& options);

// Its core: the heads' outputs [B, N, H, D], each times its gate [B, N, H].
at::Tensor vit_heads(const at::Tensor& x, const at::Tensor& gates, const VitAttentionWeights& weights,
                     const VitPlace& place, const at::Tensor& position_bias, const VitAttentionOptions& options);

}  // namespace moh::layers
