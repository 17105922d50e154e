#include "bench/plain_dit.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

namespace moh::bench {

using at::Tensor;

PlainDit::PlainDit(const models::Dit& model)
    : model_(model), tensors_(model.parameters().begin(), model.parameters().end()) {}

Tensor PlainDit::linear(const std::string& name, const Tensor& x) const {
  return at::linear(x, tensors_.at(name + ".weight"), tensors_.at(name + ".bias"));
}

// [N, T, H] in the form of the authors' code: masks over all routed heads.
Tensor PlainDit::gates(const std::string& prefix, std::int64_t layer, const Tensor& x,
                       const ops::Routing* chosen) const {
  const auto& config = model_.config();
  const std::int64_t shared = config.shared_heads(layer), k = config.top_k(layer);
  const auto scores = [&](const char* name) {
    return at::softmax(at::linear(x, tensors_.at(prefix + name + ".weight")), -1, at::kFloat);
  };
  Tensor shared_gates;
  if (shared > 1) shared_gates = scores("wg_1") * static_cast<double>(shared);
  if (shared == 1) shared_gates = at::ones({x.size(0), x.size(1), 1}, x.options());
  if (k == 0) return shared_gates;
  const Tensor routed = scores("wg");
  const Tensor best = chosen != nullptr ? chosen->indices : std::get<1>(at::topk(routed, k, -1));
  const Tensor kept = routed * at::zeros_like(routed).scatter(-1, best, 1.0);
  const Tensor routed_gates =
      kept / kept.sum(-1, true).clamp_min(std::numeric_limits<float>::epsilon()) * static_cast<double>(k);
  if (shared == 0) return routed_gates;
  const Tensor kind = scores("wg_0") * 2.0;
  return at::cat({shared_gates * kind.narrow(-1, 0, 1), routed_gates * kind.narrow(-1, 1, 1)}, -1);
}

// [N, H, T, D] each.
Tensor PlainDit::attention(const Tensor& query, const Tensor& key, const Tensor& value) const {
  if (fused_) return at::scaled_dot_product_attention(query, key, value);
  const double scale = 1.0 / std::sqrt(static_cast<double>(query.size(-1)));
  return at::matmul(at::softmax(at::matmul(query * scale, key.transpose(-2, -1)), -1), value);
}

Tensor PlainDit::forward(const Tensor& x, const Tensor& t, const Tensor& y,
                         const std::vector<ops::Routing>* chosen) const {
  const auto& config = model_.config();
  const std::int64_t patch = config.patch_size, rows = x.size(2) / patch, columns = x.size(3) / patch;
  const std::int64_t batch = x.size(0), count = rows * columns, channels = config.out_channels();
  const auto modulate = [&](const Tensor& tokens, const Tensor& shift, const Tensor& scale) {
    return at::layer_norm(tokens, {tokens.size(-1)}, {}, {}, 1e-6) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1);
  };
  Tensor tokens = at::conv2d(x, tensors_.at("x_embedder.proj.weight"), tensors_.at("x_embedder.proj.bias"), patch)
                      .flatten(2)
                      .transpose(1, 2);
  tokens =
      tokens + (count == tensors_.at("pos_embed").size(1) ? tensors_.at("pos_embed")
                                                          : models::dit_positions(config.hidden_size, rows, columns));
  const Tensor condition = at::silu(model_.embed_timesteps(t) + model_.embed_labels(y));
  for (std::int64_t layer = 0; layer < config.depth; ++layer) {
    const std::string prefix = "blocks." + std::to_string(layer) + ".", attention = prefix + "attn.";
    const std::vector<Tensor> m = linear(prefix + "adaLN_modulation.1", condition).chunk(6, -1);
    const Tensor in = modulate(tokens, m[0], m[1]);
    const Tensor qkv = linear(attention + "qkv", in)
                           .reshape({batch, count, 3, config.num_heads[layer], config.head_dim})
                           .permute({2, 0, 3, 1, 4});
    Tensor heads = this->attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2);  // [N, T, H, D]
    if (config.moh) {
      const Tensor weights = gates(attention, layer, in, chosen != nullptr ? &chosen->at(layer) : nullptr);
      heads = heads * weights.unsqueeze(-1).to(heads.scalar_type());
    }
    tokens = tokens + m[2].unsqueeze(1) * linear(attention + "proj", heads.flatten(2));
    const Tensor hidden = at::gelu(linear(prefix + "mlp.fc1", modulate(tokens, m[3], m[4])), "tanh");
    tokens = tokens + m[5].unsqueeze(1) * linear(prefix + "mlp.fc2", hidden);
  }
  const std::vector<Tensor> m = linear("final_layer.adaLN_modulation.1", condition).chunk(2, -1);
  return linear("final_layer.linear", modulate(tokens, m[0], m[1]))
      .to(at::kFloat)
      .reshape({batch, rows, columns, patch, patch, channels})
      .permute({0, 5, 1, 3, 2, 4})
      .reshape({batch, channels, x.size(2), x.size(3)});
}

}  // namespace moh::bench
