// The attention layers of MoH-ViT (spec, section 2): aggregated attention (a window of neighbours and pooled keys) in
// the first stages, full attention in the last, both with the two-stage router in the authors' form. The weights say
// which one it is: an aggregated layer has `pool`.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "moh/layers/linear.h"
#include "moh/layers/moh_layer.h"
#include "moh/layers/relative_position.h"

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
  at::Tensor query_embedding, temperature;    // [H, 1, D], [H, 1, 1]
  Linear q, kv, pool;                         // aggregated; pool: before tokens are averaged
  at::Tensor norm_weight, norm_bias;          // aggregated: of pooled tokens
  at::Tensor local_bias, tokens, token_bias;  // aggregated: [H, W], [H, D, W], [H, 1, W] for W places of the window
  Linear qkv;                                 // full: rows (q, k, v) x head x D
  Linear proj;
  PositionMlp position;
  std::shared_ptr<const Router> router;  // nullptr: dense

  bool aggregated() const { return pool.defined(); }
};

struct VitAttentionOptions {
  std::int64_t num_heads = 1, window = 3;
  RouterSetting setting = {};
  bool balance_loss = true;  // wanted: training alone needs it
};

// The position bias [H, N, M] of a layer.
at::Tensor vit_position_bias(const VitAttentionWeights& weights, const VitPlace& place);

// x [B, N, C].
MohLayerOutput vit_attention(const at::Tensor& x, const VitAttentionWeights& weights, const VitPlace& place,
                             const at::Tensor& position_bias, const VitAttentionOptions& options);

}  // namespace moh::layers
