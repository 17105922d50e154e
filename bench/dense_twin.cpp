#include "bench/dense_twin.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "moh/layers/rope.h"
#include "moh/ops/routing.h"

namespace moh::bench {
namespace {

using at::Tensor;

// x [B, T, H, D]; without gradients in place, which saves copies.
Tensor rotated(const Tensor& x, const layers::RopeTable& table) {
  const Tensor cos = table.cos.to(x.scalar_type()), sin = table.sin.to(x.scalar_type());
  const auto halves = x.chunk(2, -1);
  if (at::GradMode::is_enabled()) {
    return at::cat({at::addcmul(halves[0] * cos, halves[1], sin, -1), at::addcmul(halves[1] * cos, halves[0], sin)},
                   -1);
  }
  Tensor out = at::empty_like(x);
  auto parts = out.chunk(2, -1);
  at::mul_out(parts[0], halves[0], cos).addcmul_(halves[1], sin, -1);
  at::mul_out(parts[1], halves[1], cos).addcmul_(halves[0], sin);
  return out;
}

}  // namespace

DenseTwin::DenseTwin(const models::Llama& model) : config_(model.config()) {
  for (const auto& [name, tensor] : model.parameters()) weights_.emplace(name, tensor);
  inverse_frequencies_ = layers::rope_inverse_frequencies(config_.head_dim, config_.rope_theta, config_.rope_scaling);
}

const Tensor& DenseTwin::weight(std::int64_t layer, const char* name) const {
  return weights_.at("model.layers." + std::to_string(layer) + "." + name + ".weight");
}

Tensor DenseTwin::linear(std::int64_t layer, const char* name, const Tensor& x) const {
  return at::linear(x, weight(layer, name));
}

TwinCache DenseTwin::make_cache(std::int64_t batch, std::int64_t capacity) const {
  TwinCache cache;
  const auto options = weights_.at("model.embed_tokens.weight").options().requires_grad(false);
  for (std::int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    cache.key.push_back(at::empty({batch, config_.num_key_value_heads, capacity, config_.head_dim}, options));
    cache.value.push_back(at::empty_like(cache.key.back()));
  }
  return cache;
}

Tensor DenseTwin::attention(std::int64_t layer, const Tensor& x, const layers::RopeTable& rope, const Run& run) const {
  const auto split = [&](const Tensor& rows) { return rows.unflatten(-1, {-1, config_.head_dim}); };
  const Tensor plain_query = split(linear(layer, "self_attn.q_proj", x));
  const auto heads_first = [&](const Tensor& tensor) {
    const Tensor view = tensor.transpose(1, 2);
    return contiguous_ ? view.contiguous() : view;
  };
  const Tensor query = heads_first(rotated(plain_query, rope));
  Tensor key = rotated(split(linear(layer, "self_attn.k_proj", x)), rope);
  Tensor value = split(linear(layer, "self_attn.v_proj", x));
  if (run.cache != nullptr) {
    const auto index = static_cast<std::size_t>(layer);
    const auto store = [&](const Tensor& cache, const Tensor& rows) {
      return cache.narrow(2, 0, rows.size(1)).copy_(rows.transpose(1, 2));
    };
    key = store(run.cache->key[index], key);
    value = store(run.cache->value[index], value);
  } else {
    key = heads_first(key);
    value = heads_first(value);
  }
  Tensor heads =
      at::scaled_dot_product_attention(query, key, value, {}, 0.0, /*is_causal=*/true, {}, query.size(1) != key.size(1))
          .transpose(1, 2);
  if (run.gates != nullptr || run.gated) {
    Tensor gates;
    if (run.gates != nullptr) {
      gates = (*run.gates)[static_cast<std::size_t>(layer)];
    } else {
      const auto& moh = *config_.moh;
      const auto optionally = [&](const char* name) -> std::optional<Tensor> {
        const auto found = weights_.find("model.layers." + std::to_string(layer) + ".self_attn." + name + ".weight");
        return found == weights_.end() ? std::nullopt : std::optional<Tensor>(found->second);
      };
      gates = moh.router == "norm"
                  ? ops::route_query_norm(plain_query, config_.shared_heads(layer), config_.top_k(layer)).gates
                  : ops::route_two_stage(x, optionally("wg"), optionally("wg_1"), optionally("wg_0"),
                                         config_.num_attention_heads, config_.shared_heads(layer), config_.top_k(layer),
                                         layers::name_of(moh.gates))
                        .gates;
      if (run.masks != nullptr) gates = gates * (*run.masks)[static_cast<std::size_t>(layer)];
    }
    heads = heads * gates.unsqueeze(-1).to(heads.scalar_type());
  }
  return linear(layer, "self_attn.o_proj", heads.flatten(2));
}

DenseTwin::Output DenseTwin::forward(const Tensor& ids, const Run& run) const {
  const Tensor& embedding = weights_.at("model.embed_tokens.weight");
  const std::int64_t tokens = ids.size(1);
  const layers::RopeTable rope = layers::rope_table(inverse_frequencies_, at::arange(tokens, ids.options()));
  const auto norm = [&](const Tensor& x, const Tensor& scale) {
    return at::rms_norm(x, scale.sizes(), scale, config_.rms_norm_eps);
  };
  Tensor hidden = at::embedding(embedding, ids);
  for (std::int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    hidden = hidden + attention(layer, norm(hidden, weight(layer, "input_layernorm")), rope, run);
    const Tensor x = norm(hidden, weight(layer, "post_attention_layernorm"));
    hidden = hidden + linear(layer, "mlp.down_proj",
                             at::silu(linear(layer, "mlp.gate_proj", x)) * linear(layer, "mlp.up_proj", x));
  }
  Output output;
  output.last_hidden = norm(hidden, weights_.at("model.norm.weight"));
  const auto head = weights_.find("lm_head.weight");
  output.logits = at::linear(run.last_only ? output.last_hidden.narrow(1, tokens - 1, 1) : output.last_hidden,
                             head == weights_.end() ? embedding : head->second);
  return output;
}

}  // namespace moh::bench
