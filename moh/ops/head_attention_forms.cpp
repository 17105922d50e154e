#include "moh/ops/head_attention_forms.h"

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cmath>
#include <limits>

#include "moh/base/error.h"

namespace moh::ops {

using at::Tensor;
using std::optional;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

void check_attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
                     const AttentionVariant& variant) {
  const auto shape = [](const Tensor& tensor) { return tensor.sizes(); };
  MOH_CHECK(query.dim() == 4, "[head_attention] query must be [B, T, H, D], got ", shape(query));
  MOH_CHECK(key.dim() == 4 && value.dim() == 4, "[head_attention] key and value must be [B, S, Hkv, D], got ",
            shape(key), " and ", shape(value));
  MOH_CHECK(key.sizes() == value.sizes(), "[head_attention] key ", shape(key), " and value ", shape(value),
            " must have one shape");
  MOH_CHECK(key.size(0) == query.size(0) && key.size(3) == query.size(3), "[head_attention] query ", shape(query),
            " and key ", shape(key), " must agree in batch and head size");
  MOH_CHECK(key.size(2) > 0 && query.size(2) % key.size(2) == 0, "[head_attention] ", query.size(2),
            " query heads must be a multiple of ", key.size(2), " key heads");
  MOH_CHECK(query.size(3) > 0, "[head_attention] head size must not be zero");
  MOH_CHECK(gates.sizes() == query.sizes().slice(0, 3),
            "[head_attention] gates must be [B, T, H] = ", query.sizes().slice(0, 3), ", got ", shape(gates));
  MOH_CHECK(at::isFloatingType(query.scalar_type()) && query.scalar_type() == key.scalar_type() &&
                query.scalar_type() == value.scalar_type(),
            "[head_attention] query, key and value must have one floating dtype, got ", query.scalar_type(), ", ",
            key.scalar_type(), " and ", value.scalar_type());
  MOH_CHECK(query.device() == key.device() && query.device() == value.device() && query.device() == gates.device(),
            "[head_attention] query, key, value and gates must be on one device, got ", query.device(), ", ",
            key.device(), ", ", value.device(), " and ", gates.device());
  MOH_CHECK(variant.window >= 0 && (variant.window == 0 || variant.causal),
            "[head_attention] window must be 0 or, with causal, a number of keys, got ", variant.window);
  MOH_CHECK(variant.soft_cap >= 0 && std::isfinite(variant.soft_cap),
            "[head_attention] soft_cap must be 0 or positive, got ", variant.soft_cap);
  if (const auto& bias = variant.bias) {
    const std::vector<std::int64_t> wanted = {query.size(0), query.size(2), query.size(1), key.size(1)};
    bool fits = bias->dim() <= 4;
    for (std::int64_t i = 1; fits && i <= bias->dim(); ++i) {
      fits = bias->size(-i) == 1 || bias->size(-i) == wanted[4 - i];
    }
    MOH_CHECK(fits, "[head_attention] bias ", shape(*bias),
              " must be broadcastable to [B, H, T, S] = ", at::IntArrayRef(wanted));
    MOH_CHECK(
        at::isFloatingType(bias->scalar_type()),
        "[head_attention] bias must be added to scores (a floating dtype) or be a bool mask, true where a key may "
        "be seen; got ",
        bias->scalar_type());
    MOH_CHECK(bias->device() == query.device(), "[head_attention] bias must be on ", query.device(), ", got ",
              bias->device());
  }
  if (const auto& sink = variant.sink) {
    MOH_CHECK(sink->dim() == 1 && sink->size(0) == query.size(2) && at::isFloatingType(sink->scalar_type()) &&
                  sink->device() == query.device(),
              "[head_attention] sink must be floating [H] = [", query.size(2), "] on ", query.device(), ", got ",
              sink->scalar_type(), " ", shape(*sink));
  }
}

double scale_of(const AttentionVariant& variant, const Tensor& query) {
  return variant.scale ? *variant.scale : 1.0 / std::sqrt(static_cast<double>(query.size(3)));
}

namespace {

// Half types are computed in fp32, like the fused kernels.
at::ScalarType compute_type(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// [B, T, H, D] -> [B, Hkv, G*T, D], so that one product serves all query heads of a KV head.
Tensor grouped(const Tensor& tensor, std::int64_t num_kv_heads) {
  return tensor.transpose(1, 2).reshape({tensor.size(0), num_kv_heads, -1, tensor.size(3)});
}

struct Scores {
  Tensor scores;  // [B, H, T, S], -inf where hidden
  Tensor slope;   // derivative of the soft cap; undefined without one
};

Scores masked_scores(const Tensor& query, const Tensor& key, const AttentionVariant& variant) {
  const auto type = compute_type(query);
  const std::int64_t tokens = query.size(1), keys = key.size(1);
  Scores result;
  Tensor scores = at::matmul(grouped(query.to(type), key.size(2)), key.to(type).permute({0, 2, 3, 1}));
  scores = scores.reshape({query.size(0), query.size(2), tokens, keys}) * scale_of(variant, query);
  if (variant.soft_cap > 0) {
    const Tensor tanh = at::tanh(scores / variant.soft_cap);
    scores = tanh * variant.soft_cap;
    result.slope = 1 - tanh * tanh;
  }
  if (variant.bias) scores = scores + variant.bias->to(type);
  if (variant.causal) {
    Tensor visible =
        at::ones({tokens, keys}, scores.options().dtype(at::kBool).requires_grad(false)).tril(keys - tokens);
    if (variant.window > 0) visible = visible.triu(keys - tokens + 1 - variant.window);
    scores = scores.masked_fill(visible.logical_not(), -kInfinity);
  }
  result.scores = scores;
  return result;
}

// P V for P [B, H, T, S]: [B, T, H, D].
Tensor times_value(const Tensor& probabilities, const Tensor& value) {
  const auto sizes = probabilities.sizes();
  const Tensor rows = probabilities.reshape({sizes[0], value.size(2), -1, sizes[3]});
  return at::matmul(rows, value.to(probabilities.scalar_type()).transpose(1, 2))
      .reshape({sizes[0], sizes[1], sizes[2], value.size(3)})
      .transpose(1, 2);
}

// Softmax over keys whose rows without keys are zero, never NaN. lse [B, T, H].
Tensor probabilities_of(const Tensor& scores, const Tensor& lse) {
  return at::exp(scores - lse.masked_fill(lse == -kInfinity, kInfinity).transpose(1, 2).unsqueeze(-1));
}

}  // namespace

std::tuple<Tensor, Tensor> composite_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                             const Tensor& gates, const AttentionVariant& variant) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);  // fp32, as the kernels
  const Tensor scores = masked_scores(query, key, variant).scores;
  const Tensor skipped = gates.eq(0);
  Tensor lse = scores.size(3) == 0 ? at::full(scores.sizes().slice(0, 3), -kInfinity, scores.options())
                                   : at::logsumexp(scores, {-1});
  lse = lse.transpose(1, 2);
  if (variant.sink && scores.size(3) > 0) lse = at::logaddexp(lse, variant.sink->to(lse.scalar_type()));
  lse = lse.masked_fill(skipped, -kInfinity);
  const Tensor head_out = times_value(probabilities_of(scores, lse), value);
  const Tensor out = (head_out * gates.to(scores.scalar_type()).unsqueeze(-1)).masked_fill(skipped.unsqueeze(-1), 0);
  return {out.to(query.scalar_type()).contiguous(), lse.contiguous()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> composite_backward(const Tensor& grad_out, const Tensor& query,
                                                                      const Tensor& key, const Tensor& value,
                                                                      const Tensor& gates, const Tensor& lse,
                                                                      const AttentionVariant& variant) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);  // fp32, as the kernels
  const auto type = compute_type(query);
  const std::int64_t kv_heads = key.size(2);
  const double scale = scale_of(variant, query);
  const Scores scores = masked_scores(query, key, variant);
  const Tensor p = probabilities_of(scores.scores, lse);  // [B, H, T, S], zero for skipped heads
  const Tensor grad = grad_out.to(type), weights = gates.to(type);

  const auto by_group = [&](const Tensor& tensor) {
    return tensor.reshape({tensor.size(0), kv_heads, -1, tensor.size(3)});
  };
  const auto from_group = [&](const Tensor& tensor) { return tensor.transpose(1, 2); };
  const Tensor query_rows = grouped(query.to(type), kv_heads);
  // <grad_out, v>: of the head's output before its gate, so that a gate's gradient is not divided by the gate.
  const Tensor grad_p = at::matmul(grouped(grad, kv_heads), value.to(type).permute({0, 2, 3, 1})).reshape(p.sizes());
  const Tensor head_gradient = (p * grad_p).sum(-1);  // [B, H, T]
  const Tensor grad_bias =
      p * (grad_p - head_gradient.unsqueeze(-1)) * weights.transpose(1, 2).unsqueeze(-1);  // [B, H, T, S]
  const Tensor grad_scores = scores.slope.defined() ? grad_bias * scores.slope : grad_bias;
  const Tensor gated = (grad * weights.unsqueeze(-1)).masked_fill(gates.eq(0).unsqueeze(-1), 0);
  const Tensor grad_value = from_group(at::matmul(by_group(p).transpose(2, 3), grouped(gated, kv_heads)));
  const Tensor grad_key = from_group(at::matmul(by_group(grad_scores).transpose(2, 3), query_rows)) * scale;
  const Tensor grad_query = times_value(grad_scores, key) * scale;
  const auto dtype = query.scalar_type();
  return {grad_query.to(dtype).contiguous(), grad_key.to(dtype).contiguous(), grad_value.to(dtype).contiguous(),
          head_gradient.transpose(1, 2).contiguous(), grad_bias};
}

Tensor head_attention_composite(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
                                const AttentionVariant& variant) {
  check_attention(query, key, value, gates, variant);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);  // fp32, as the kernels
  Tensor scores = masked_scores(query, key, variant).scores;
  const Tensor hidden = scores.eq(-kInfinity);
  const Tensor no_key = hidden.all(-1, /*keepdim=*/true);
  scores = scores.masked_fill(no_key, 0);  // keeps NaN out of the gradient of rows without keys
  if (variant.sink) {                      // one more key, whose share goes nowhere
    const Tensor sink = variant.sink->to(scores.scalar_type()).reshape({1, -1, 1, 1});
    scores = at::cat({scores, sink.expand({scores.size(0), -1, scores.size(2), 1})}, -1);
  }
  const Tensor p = at::softmax(scores, -1).narrow(-1, 0, hidden.size(-1)).masked_fill(hidden, 0);
  return (times_value(p, value) * gates.to(scores.scalar_type()).unsqueeze(-1)).to(query.scalar_type());
}

Tensor head_attention_composite(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
                                const optional<Tensor>& bias, bool causal, optional<double> scale) {
  return head_attention_composite(query, key, value, gates, {.causal = causal, .bias = bias, .scale = scale});
}

}  // namespace moh::ops
