#include "moh/layers/vit_attention.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "moh/ops/aggregated_attention.h"
#include "moh/ops/head_attention.h"

namespace moh::layers {
namespace {

using at::Tensor;

constexpr double kPooledEps = 1e-5, kNormFloor = 1e-12;

Tensor normalized(const Tensor& rows) {
  return rows / at::linalg_vector_norm(rows, 2, {-1}, /*keepdim=*/true).clamp_min(kNormFloor);
}

// 1x1 convolution, GELU, adaptive average: [B, N, C] -> [B, M, C].
Tensor pooled_tokens(const Tensor& x, const VitAttentionWeights& weights, const VitPlace& place) {
  const std::int64_t batch = x.size(0), dim = x.size(2), height = place.map.height, width = place.map.width;
  const Tensor map = weights.pool(x, ops::Activation::kGelu).reshape({batch, height, width, dim}).permute({0, 3, 1, 2});
  const Tensor pooled = at::adaptive_avg_pool2d(map, {place.pooled.height, place.pooled.width});
  const Tensor tokens = pooled.permute({0, 2, 3, 1}).flatten(1, 2).to(weights.norm_weight.scalar_type());
  return at::layer_norm(tokens, {dim}, weights.norm_weight, weights.norm_bias, kPooledEps);
}

Tensor aggregated_heads(const Tensor& x, const ProjectedHeads& heads, const Gates& gates,
                        const VitAttentionWeights& weights, const VitPlace& place, const Tensor& position_bias,
                        const VitAttentionOptions& options) {
  const std::int64_t count = options.num_heads, head_dim = x.size(2) / count;
  const Tensor tokens = pooled_tokens(x, weights, place);
  const auto pooled = weights.kv(tokens).reshape({x.size(0), tokens.size(1), 2, count, head_dim}).unbind(2);
  ops::AggregatedInputs in;
  in.query = heads.query;
  in.key = heads.key;
  in.value = heads.value;
  in.pool_key = pooled[0];
  in.pool_value = pooled[1];
  in.gates = gates.selection.gates;
  in.rows = gates.selection.rows;
  in.first = gates.selection.first;
  in.query_embedding = weights.query_embedding.reshape({count, head_dim});
  in.temperature = at::softplus(weights.temperature.reshape({count}));
  in.position_scale = place.scale;
  in.local_bias = weights.local_bias;
  in.pool_bias = position_bias;
  in.tokens = weights.tokens;
  in.token_bias = weights.token_bias.reshape({count, -1});
  in.height = place.map.height;
  in.width = place.map.width;
  in.window = options.window;
  return ops::aggregated_attention(in);
}

Tensor full_heads(const ProjectedHeads& heads, const Gates& gates, const VitAttentionWeights& weights,
                  const VitPlace& place, const Tensor& position_bias) {
  const std::int64_t count = heads.query.size(2), head_dim = heads.query.size(3);
  const auto type = heads.key.scalar_type();
  const Tensor factor = at::softplus(weights.temperature.reshape({count, 1})) * place.scale;
  const Tensor query = (normalized(heads.query) + weights.query_embedding.reshape({count, head_dim})) * factor;
  return ops::head_attention(query.to(type), normalized(heads.key).to(type), heads.value, gates.selection,
                             {.bias = position_bias, .scale = 1.0});
}

}  // namespace

VitPlace VitPlace::to(at::Device device) const {
  VitPlace moved = *this;
  moved.positions.table = positions.table.to(device);
  moved.positions.index = positions.index.to(device);
  moved.scale = scale.to(device);
  return moved;
}

VitPlace vit_place(MapSize map, std::int64_t ratio, std::int64_t window, MapSize pretrain) {
  VitPlace place;
  place.map = map;
  place.pooled = {std::max<std::int64_t>(1, map.height / ratio), std::max<std::int64_t>(1, map.width / ratio)};
  place.positions = relative_positions(map, place.pooled, pretrain);
  Tensor keys = at::full({1}, static_cast<double>(map.area()), at::TensorOptions(at::kFloat));
  if (ratio > 1) {
    // Tokens of the window that lie inside the map, along one side; both sides' product is the number of local keys.
    const auto inside = [half = window / 2](std::int64_t size) {
      const Tensor at = at::arange(size, at::TensorOptions(at::kLong));
      return (at + half).clamp_max(size - 1) - (at - half).clamp_min(0) + 1;
    };
    keys = (inside(map.height).unsqueeze(1) * inside(map.width).unsqueeze(0) + place.pooled.area())
               .reshape({-1})
               .to(at::kFloat);
  }
  place.scale = at::log(keys);
  return place;
}

Tensor vit_position_bias(const VitAttentionWeights& weights, const VitPlace& place) {
  return relative_position_bias(place.positions, weights.position, place.map.area(), place.pooled.area());
}

MohLayerOutput vit_attention(const Tensor& x, const VitAttentionWeights& weights, const VitPlace& place,
                             const Tensor& position_bias, const VitAttentionOptions& options) {
  MohLayer layer;
  layer.num_heads = layer.num_kv_heads = options.num_heads;
  layer.router = weights.router.get();
  layer.out = weights.proj;
  if (weights.aggregated()) {
    layer.in.query = weights.q;
    layer.in.key_value = weights.kv;
  } else {
    layer.in = Projections::of_joint(weights.qkv, weights.qkv.outputs() / 3, /*as_one=*/false);
  }
  return moh_layer(layer, options.setting, x, {.balance_loss = options.balance_loss},
                   [&](const ProjectedHeads& heads, const Gates& gates) {
                     return weights.aggregated()
                                ? aggregated_heads(x, heads, gates, weights, place, position_bias, options)
                                : full_heads(heads, gates, weights, place, position_bias);
                   });
}

}  // namespace moh::layers
