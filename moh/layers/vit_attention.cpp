#include "moh/layers/vit_attention.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "moh/ops/aggregated_attention.h"
#include "moh/ops/head_attention.h"
#include "moh/ops/linear.h"
#include "moh/ops/projection.h"

namespace moh::layers {
namespace {

using at::Tensor;

constexpr double kPooledEps = 1e-5, kNormFloor = 1e-12;

Tensor normalized(const Tensor& rows) {
  return rows / at::linalg_vector_norm(rows, 2, {-1}, /*keepdim=*/true).clamp_min(kNormFloor);
}

auto linear_of(const VitAttentionOptions& options) {
  return [authors_form = options.authors_form](const Tensor& x, const Tensor& weight, const Tensor& bias) {
    return authors_form ? at::linear(x, weight, bias) : ops::linear(x, weight, bias);
  };
}

// 1x1 convolution, GELU, adaptive average: [B, N, C] -> [B, M, C].
Tensor pooled_tokens(const Tensor& x, const VitAttentionWeights& weights, const VitPlace& place, bool authors_form) {
  const std::int64_t batch = x.size(0), dim = x.size(2), height = place.map.height, width = place.map.width;
  Tensor map;
  if (authors_form) {
    const Tensor channels_first = x.transpose(1, 2).reshape({batch, dim, height, width}).contiguous();
    map = at::gelu(at::conv2d(channels_first, weights.sr_weight, weights.sr_bias));
  } else {
    map = ops::linear(x, weights.sr_weight.reshape({dim, dim}), weights.sr_bias, ops::Activation::kGelu)
              .reshape({batch, height, width, dim})
              .permute({0, 3, 1, 2});
  }
  const Tensor pooled = at::adaptive_avg_pool2d(map, {place.pooled.height, place.pooled.width});
  const Tensor tokens = pooled.permute({0, 2, 3, 1}).flatten(1, 2).to(weights.norm_weight.scalar_type());
  return at::layer_norm(tokens, {dim}, weights.norm_weight, weights.norm_bias, kPooledEps);
}

// Attention neither reads the queries of heads that were not selected nor leaves anything but zeros for them, so that
// the products before and after it may compute all heads where that is faster.
bool skips(const Tensor& x, const VitAttentionOptions& options) {
  const double active = static_cast<double>(options.shared_heads + options.top_k);
  return options.routed && !options.authors_form &&
         ops::skips_heads(x, x.size(2) / options.num_heads, active / static_cast<double>(options.num_heads));
}

// Only for the heads that a token selected, [B, N, H, D]: a skipped head needs no query.
Tensor queries(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gates,
               const VitAttentionOptions& options) {
  if (skips(x, options)) return ops::project_heads(x, weight, bias, gates);
  return linear_of(options)(x, weight, bias).reshape({x.size(0), x.size(1), options.num_heads, -1});
}

Tensor aggregated_heads(const Tensor& x, const Tensor& gates, const VitAttentionWeights& weights, const VitPlace& place,
                        const Tensor& position_bias, const VitAttentionOptions& options) {
  const std::int64_t batch = x.size(0), heads = options.num_heads, head_dim = x.size(2) / heads;
  const auto keys_and_values = [&](const Tensor& from) {
    return linear_of(options)(from, weights.kv_weight, weights.kv_bias)
        .reshape({batch, from.size(1), 2, heads, head_dim})
        .unbind(2);  // its gradient is put together once; those of two selections would be added up, zeros and all
  };
  const auto local = keys_and_values(x);
  const auto pooled = keys_and_values(pooled_tokens(x, weights, place, options.authors_form));
  ops::AggregatedInputs in;
  in.query = queries(x, weights.q_weight, weights.q_bias, gates, options);
  in.key = local[0];
  in.value = local[1];
  in.pool_key = pooled[0];
  in.pool_value = pooled[1];
  in.gates = gates;
  in.query_embedding = weights.query_embedding.reshape({heads, head_dim});
  in.temperature = at::softplus(weights.temperature.reshape({heads}));
  in.position_scale = place.scale;
  in.local_bias = weights.local_bias;
  in.pool_bias = position_bias;
  in.tokens = weights.tokens;
  in.token_bias = weights.token_bias.reshape({heads, -1});
  in.height = place.map.height;
  in.width = place.map.width;
  in.window = options.window;
  return options.authors_form ? ops::aggregated_attention_composite(in) : ops::aggregated_attention(in);
}

Tensor full_heads(const Tensor& x, const Tensor& gates, const VitAttentionWeights& weights, const VitPlace& place,
                  const Tensor& position_bias, const VitAttentionOptions& options) {
  const std::int64_t heads = options.num_heads, head_dim = x.size(2) / heads;
  // Rows of the weight are ordered (q, k, v) x head x D.
  const std::int64_t dim = heads * head_dim;
  const Tensor plain_query =
      queries(x, weights.qkv_weight.narrow(0, 0, dim), weights.qkv_bias.narrow(0, 0, dim), gates, options);
  const auto kv =
      linear_of(options)(x, weights.qkv_weight.narrow(0, dim, 2 * dim), weights.qkv_bias.narrow(0, dim, 2 * dim))
          .reshape({x.size(0), x.size(1), 2, heads, head_dim})
          .unbind(2);
  const auto type = kv[0].scalar_type();
  const Tensor factor = at::softplus(weights.temperature.reshape({heads, 1})) * place.scale;
  const Tensor query = (normalized(plain_query) + weights.query_embedding.reshape({heads, head_dim})) * factor;
  const Tensor key = normalized(kv[0]).to(type);
  const ops::AttentionVariant variant = {.bias = position_bias, .scale = 1.0};
  if (options.authors_form) return ops::head_attention_composite(query.to(type), key, kv[1], gates, variant);
  return ops::head_attention(query.to(type), key, kv[1], ops::Selection{gates, {}, {}}, variant);
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
  return relative_position_bias(place.positions, weights.fc1_weight, weights.fc1_bias, weights.fc2_weight,
                                weights.fc2_bias, place.map.area(), place.pooled.area());
}

Tensor vit_heads(const Tensor& x, const Tensor& gates, const VitAttentionWeights& weights, const VitPlace& place,
                 const Tensor& position_bias, const VitAttentionOptions& options) {
  return weights.aggregated() ? aggregated_heads(x, gates, weights, place, position_bias, options)
                              : full_heads(x, gates, weights, place, position_bias, options);
}

VitAttentionOutput vit_attention(const Tensor& x, const VitAttentionWeights& weights, const VitPlace& place,
                                 const Tensor& position_bias, const VitAttentionOptions& options) {
  VitAttentionOutput output;
  Tensor gates;
  if (options.routed) {
    std::optional<Tensor> kind = weights.wg_0;
    // Equal scores weigh both kinds 1, as if there were no second stage.
    if (!options.two_stage) kind = at::zeros({2, x.size(2)}, x.options().requires_grad(false));
    output.routing = ops::route_two_stage(x, weights.wg, weights.wg_1, kind, options.num_heads, options.shared_heads,
                                          options.top_k, "authors");
    gates = output.routing.gates;
    if (options.top_k > 0 && options.balance_loss) {
      output.load_balance_loss =
          ops::load_balance_loss(output.routing.probabilities, output.routing.indices, "authors");
    }
  } else {
    gates = at::ones({x.size(0), x.size(1), options.num_heads}, x.options().requires_grad(false));
  }
  const Tensor heads = vit_heads(x, gates, weights, place, position_bias, options);
  output.y = skips(x, options) ? ops::combine_heads(heads, weights.proj_weight, weights.proj_bias, gates)
                               : linear_of(options)(heads.flatten(2), weights.proj_weight, weights.proj_bias);
  return output;
}

}  // namespace moh::layers
