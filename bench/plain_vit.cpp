#include "bench/plain_vit.h"

#include <ATen/ATen.h>

#include "moh/ops/aggregated_attention.h"
#include "moh/ops/gated_convolution.h"
#include "moh/ops/head_attention.h"
#include "moh/ops/routing.h"

namespace moh::bench {
namespace {

using at::Tensor;
using layers::MapSize;

constexpr double kBlockEps = 1e-6, kPatchEps = 1e-5, kNormFloor = 1e-12;

Tensor normalized(const Tensor& rows) {
  return rows / at::linalg_vector_norm(rows, 2, {-1}, /*keepdim=*/true).clamp_min(kNormFloor);
}

}  // namespace

PlainVit::PlainVit(const models::Vit& model)
    : model_(model), tensors_(model.parameters().begin(), model.parameters().end()) {}

Tensor PlainVit::linear(const std::string& name, const Tensor& x) const {
  return at::linear(x, tensor(name + ".weight"), tensor(name + ".bias"));
}

Tensor PlainVit::norm(const std::string& name, const Tensor& x, double eps) const {
  const Tensor& weight = tensor(name + ".weight");
  return at::layer_norm(x.to(weight.scalar_type()), weight.sizes(), weight, tensor(name + ".bias"), eps);
}

Tensor PlainVit::gates(std::size_t stage, const std::string& prefix, const Tensor& x, Output* losses) const {
  const models::VitConfig& config = model_.config();
  const std::int64_t heads = config.num_heads[stage];
  if (!config.moh) return at::ones({x.size(0), x.size(1), heads}, x.options().requires_grad(false));
  const auto optionally = [&](const char* name) -> std::optional<Tensor> {
    const auto found = tensors_.find(prefix + name + ".weight");
    return found == tensors_.end() ? std::nullopt : std::optional(found->second);
  };
  std::optional<Tensor> kind = optionally("wg_0");
  if (!config.moh->two_stage) kind = at::zeros({2, x.size(2)}, x.options().requires_grad(false));
  const auto routing = ops::route_two_stage(x, optionally("wg"), optionally("wg_1"), kind, heads,
                                            config.shared_heads(stage), config.top_k(stage), "authors");
  if (losses != nullptr && config.top_k(stage) > 0) {
    losses->balance_losses.push_back(ops::load_balance_loss(routing.probabilities, routing.indices, "authors"));
  }
  return routing.gates;
}

Tensor PlainVit::position_bias(const std::string& prefix, const layers::VitPlace& place) const {
  const Tensor by_distance = linear(prefix + "cpb_fc2", at::relu(linear(prefix + "cpb_fc1", place.positions.table)));
  return by_distance.t().index_select(1, place.positions.index).reshape({-1, place.map.area(), place.pooled.area()});
}

Tensor PlainVit::aggregated(std::size_t stage, const std::string& prefix, const Tensor& x, const Tensor& gates,
                            const layers::VitPlace& place) const {
  const std::int64_t batch = x.size(0), dim = x.size(2), heads = model_.config().num_heads[stage];
  const auto keys_and_values = [&](const Tensor& from) {
    return linear(prefix + "kv", from).reshape({batch, from.size(1), 2, heads, dim / heads}).unbind(2);
  };
  const Tensor map = x.transpose(1, 2).reshape({batch, dim, place.map.height, place.map.width}).contiguous();
  const Tensor mixed = at::gelu(at::conv2d(map, tensor(prefix + "sr.weight"), tensor(prefix + "sr.bias")));
  const Tensor pooled_map = at::adaptive_avg_pool2d(mixed, {place.pooled.height, place.pooled.width});
  const auto local = keys_and_values(x);
  const auto pooled = keys_and_values(norm(prefix + "norm", pooled_map.permute({0, 2, 3, 1}).flatten(1, 2), kPatchEps));
  ops::AggregatedInputs in;
  in.query = linear(prefix + "q", x).reshape({batch, x.size(1), heads, -1});
  in.key = local[0];
  in.value = local[1];
  in.pool_key = pooled[0];
  in.pool_value = pooled[1];
  in.gates = gates;
  in.query_embedding = tensor(prefix + "query_embedding").reshape({heads, -1});
  in.temperature = at::softplus(tensor(prefix + "temperature").reshape({heads}));
  in.position_scale = place.scale;
  in.local_bias = tensor(prefix + "relative_pos_bias_local");
  in.pool_bias = position_bias(prefix, place);
  in.tokens = tensor(prefix + "learnable_tokens");
  in.token_bias = tensor(prefix + "learnable_bias").reshape({heads, -1});
  in.height = place.map.height;
  in.width = place.map.width;
  in.window = model_.config().window_size;
  return ops::aggregated_attention_composite(in);
}

Tensor PlainVit::full(std::size_t stage, const std::string& prefix, const Tensor& x, const Tensor& gates,
                      const layers::VitPlace& place) const {
  const std::int64_t heads = model_.config().num_heads[stage];
  const auto qkv = linear(prefix + "qkv", x).reshape({x.size(0), x.size(1), 3, heads, -1}).unbind(2);
  const auto type = qkv[1].scalar_type();
  const Tensor factor = at::softplus(tensor(prefix + "temperature").reshape({heads, 1})) * place.scale;
  const Tensor query = (normalized(qkv[0]) + tensor(prefix + "query_embedding").reshape({heads, -1})) * factor;
  return ops::head_attention_composite(query.to(type), normalized(qkv[1]).to(type), qkv[2], gates,
                                       position_bias(prefix, place), /*causal=*/false, /*scale=*/1.0);
}

PlainVit::Output PlainVit::forward(const Tensor& images, bool training) const {
  const models::VitConfig& config = model_.config();
  Output output;
  Tensor x = images;
  for (std::size_t stage = 0; stage < config.embed_dims.size(); ++stage) {
    const std::string number = std::to_string(stage + 1), patch = "patch_embed" + number;
    const Tensor& weight = tensor(patch + ".proj.weight");
    x = at::conv2d(x.contiguous(), weight, tensor(patch + ".proj.bias"), stage == 0 ? config.patch_size : 2,
                   weight.size(2) / 2);
    const MapSize map{x.size(2), x.size(3)};
    const layers::VitPlace& place = model_.place(stage, map);
    x = norm(patch + ".norm", x.flatten(2).transpose(1, 2), kPatchEps);
    for (std::int64_t i = 0; i < config.depths[stage]; ++i) {
      const std::string block = "block" + number + "." + std::to_string(i) + ".", attention = block + "attn.";
      const Tensor in = norm(block + "norm1", x, kBlockEps);
      const Tensor weights = gates(stage, attention, in, training ? &output : nullptr);
      const Tensor heads = config.sr_ratios[stage] > 1 ? aggregated(stage, attention, in, weights, place)
                                                       : full(stage, attention, in, weights, place);
      x = x + linear(attention + "proj", heads.flatten(2));
      const Tensor hidden = linear(block + "mlp.fc1", norm(block + "norm2", x, kBlockEps));
      const Tensor gated =
          ops::gated_convolution_composite(hidden, tensor(block + "mlp.dwconv.dwconv.weight"),
                                           tensor(block + "mlp.dwconv.dwconv.bias"), map.height, map.width);
      x = x + linear(block + "mlp.fc2", gated);
    }
    x = norm("norm" + number, x, kBlockEps);
    if (stage + 1 < config.embed_dims.size()) x = x.transpose(1, 2).reshape({x.size(0), -1, map.height, map.width});
  }
  output.logits = linear("head", x.mean(1));
  return output;
}

}  // namespace moh::bench
