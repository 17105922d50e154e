#include "moh/ops/head_attention.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "moh/base/error.h"
#include "moh/kernels/backend.h"
#include "moh/ops/device/stream.h"
#include "moh/ops/kernel_tensor.h"
#include "moh/ops/parallel.h"

namespace moh::ops {
namespace {

using at::Tensor;
using std::optional;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

void check_inputs(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
                  const optional<Tensor>& bias) {
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
  if (bias) {
    const std::vector<std::int64_t> wanted = {query.size(0), query.size(2), query.size(1), key.size(1)};
    bool fits = bias->dim() <= 4;
    for (std::int64_t i = 1; fits && i <= bias->dim(); ++i) {
      fits = bias->size(-i) == 1 || bias->size(-i) == wanted[4 - i];
    }
    MOH_CHECK(fits, "[head_attention] bias ", shape(*bias),
              " must be broadcastable to [B, H, T, S] = ", at::IntArrayRef(wanted));
    MOH_CHECK(bias->device() == query.device(), "[head_attention] bias must be on ", query.device(), ", got ",
              bias->device());
  }
}

double scale_or_default(const optional<double>& scale, const Tensor& query) {
  return scale ? *scale : 1.0 / std::sqrt(static_cast<double>(query.size(3)));
}

// Half types are computed in fp32, like the fused kernels.
at::ScalarType compute_type(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

Tensor expand_bias(const Tensor& bias, const Tensor& query, const Tensor& key) {
  return bias.expand({query.size(0), query.size(2), query.size(1), key.size(1)});
}

// [B, T, H, D] -> [B, Hkv, G*T, D], so that one product serves all query heads of a KV head.
Tensor grouped(const Tensor& tensor, std::int64_t num_kv_heads) {
  return tensor.transpose(1, 2).reshape({tensor.size(0), num_kv_heads, -1, tensor.size(3)});
}

// scale * q k^T + bias, masked: [B, H, T, S].
Tensor masked_scores(const Tensor& query, const Tensor& key, const optional<Tensor>& bias, bool causal, double scale) {
  const auto type = compute_type(query);
  const std::int64_t tokens = query.size(1), keys = key.size(1);
  Tensor scores = at::matmul(grouped(query.to(type), key.size(2)), key.to(type).permute({0, 2, 3, 1}));
  scores = scores.reshape({query.size(0), query.size(2), tokens, keys}) * scale;
  if (bias) scores = scores + bias->to(type);
  if (causal) {
    const Tensor visible = at::ones({tokens, keys}, scores.options().dtype(at::kBool)).tril(keys - tokens);
    scores = scores.masked_fill(visible.logical_not(), -kInfinity);
  }
  return scores;
}

// P V for P [B, H, T, S]: [B, T, H, D].
Tensor times_value(const Tensor& probabilities, const Tensor& value) {
  const auto sizes = probabilities.sizes();
  const Tensor rows = probabilities.reshape({sizes[0], value.size(2), -1, sizes[3]});
  return at::matmul(rows, value.to(probabilities.scalar_type()).transpose(1, 2))
      .reshape({sizes[0], sizes[1], sizes[2], value.size(3)})
      .transpose(1, 2);
}

// Softmax over keys whose rows without keys are zero, never NaN.
Tensor probabilities_of(const Tensor& scores, const Tensor& lse) {
  return at::exp(scores - lse.masked_fill(lse == -kInfinity, kInfinity).unsqueeze(-1));
}

std::tuple<Tensor, Tensor> composite_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                             const Tensor& gates, const optional<Tensor>& bias, bool causal,
                                             double scale) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);  // fp32, as the kernels
  const Tensor scores = masked_scores(query, key, bias, causal, scale);
  const Tensor skipped = gates.eq(0);
  Tensor lse = scores.size(3) == 0 ? at::full(scores.sizes().slice(0, 3), -kInfinity, scores.options())
                                   : at::logsumexp(scores, {-1});
  lse = lse.masked_fill(skipped.transpose(1, 2), -kInfinity);
  const Tensor head_out = times_value(probabilities_of(scores, lse), value);
  const Tensor out = (head_out * gates.to(scores.scalar_type()).unsqueeze(-1)).masked_fill(skipped.unsqueeze(-1), 0);
  return {out.to(query.scalar_type()).contiguous(), lse.contiguous()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> composite_backward(const Tensor& grad_out, const Tensor& query,
                                                                      const Tensor& key, const Tensor& value,
                                                                      const Tensor& gates, const optional<Tensor>& bias,
                                                                      const Tensor& out, const Tensor& lse, bool causal,
                                                                      double scale) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);  // fp32, as the kernels
  const auto type = compute_type(query);
  const std::int64_t kv_heads = key.size(2);
  const Tensor weights = gates.to(type).unsqueeze(-1);
  const Tensor p = probabilities_of(masked_scores(query, key, bias, causal, scale), lse);  // [B, H, T, S]
  const Tensor grad = grad_out.to(type);
  const Tensor delta = (grad * out.to(type)).sum(-1);  // [B, T, H] = gate * <grad_out, head output>
  const Tensor grad_gates = at::where(gates.eq(0), at::zeros({}, delta.options()), delta / gates.to(type));
  const Tensor grad_head = (grad * weights).masked_fill(gates.eq(0).unsqueeze(-1), 0);

  const auto by_group = [&](const Tensor& tensor) {
    return tensor.reshape({tensor.size(0), kv_heads, -1, tensor.size(3)});
  };
  const auto from_group = [&](const Tensor& tensor) { return tensor.transpose(1, 2); };
  const Tensor grad_rows = grouped(grad_head, kv_heads);  // [B, Hkv, G*T, D]
  const Tensor query_rows = grouped(query.to(type), kv_heads);
  const Tensor grad_p = at::matmul(grad_rows, value.to(type).permute({0, 2, 3, 1})).reshape(p.sizes());
  const Tensor grad_scores = p * (grad_p - delta.transpose(1, 2).unsqueeze(-1));  // [B, H, T, S]
  const Tensor grad_value = from_group(at::matmul(by_group(p).transpose(2, 3), grad_rows));
  const Tensor grad_key = from_group(at::matmul(by_group(grad_scores).transpose(2, 3), query_rows)) * scale;
  const Tensor grad_query = times_value(grad_scores, key) * scale;
  const auto dtype = query.scalar_type();
  return {grad_query.to(dtype).contiguous(), grad_key.to(dtype).contiguous(), grad_value.to(dtype).contiguous(),
          grad_gates.contiguous(), grad_scores};
}

kernels::HeadAttentionParams make_params(const Tensor& query, const Tensor& key, const Tensor& value,
                                         const Tensor& gates_fp32, const optional<Tensor>& bias, bool causal,
                                         double scale) {
  kernels::HeadAttentionParams params;
  params.batch = query.size(0);
  params.queries = query.size(1);
  params.num_heads = query.size(2);
  params.head_dim = query.size(3);
  params.keys = key.size(1);
  params.num_kv_heads = key.size(2);
  params.causal = causal;
  params.scale = static_cast<float>(scale);
  params.dtype = kernel_dtype(query.scalar_type());
  params.on_cpu = query.is_cpu();
  params.stream = current_stream(query);
  fill(params.query, query);
  fill(params.key, key);
  fill(params.value, value);
  params.gates = gates_fp32.const_data_ptr<float>();
  if (bias) fill(params.bias, *bias);
  params.parallel = torch_parallel();
  return params;
}

kernels::CallTraits traits_of(const kernels::HeadAttentionParams& params, bool backward) {
  return {params.dtype, params.on_cpu, params.head_dim, backward, kernels::Kernel::kAttention};
}

// The kernels read a bias of the dtype of query, already expanded to four dimensions (stride 0 where it broadcasts).
optional<Tensor> as_kernel_bias(const optional<Tensor>& bias, const Tensor& query, const Tensor& key) {
  if (!bias) return std::nullopt;
  return expand_bias(bias->detach().to(query.scalar_type()), query, key);
}

// Whether the table of backends could have a row for tensors that live there; elsewhere there may be no pointers at
// all.
bool has_kernels(const Tensor& tensor) { return tensor.is_cpu() || tensor.is_cuda(); }

// Nothing falls back in silence; fp64 is meant to take this way.
void tell_composite(const Tensor& query, const std::string& reason) {
  if (query.scalar_type() == at::kDouble) return;
  TORCH_WARN_ONCE("moh::head_attention runs its composite form: ", reason);
}

std::tuple<Tensor, Tensor> head_attention_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                                  const Tensor& gates, const optional<Tensor>& bias, bool causal,
                                                  optional<double> scale_option) {
  check_inputs(query, key, value, gates, bias);
  const double scale = scale_or_default(scale_option, query);
  if (has_kernels(query)) {
    const Tensor kernel_gates = kernel_gates_of(gates);
    const optional<Tensor> kernel_bias = as_kernel_bias(bias, query, key);
    auto params = make_params(query, key, value, kernel_gates, kernel_bias, causal, scale);
    std::string reason;
    if (const auto* backend = kernels::choose_backend(traits_of(params, false), &reason)) {
      const Tensor out = at::empty(query.sizes(), query.options());
      const Tensor lse = at::empty({query.size(0), query.size(2), query.size(1)}, query.options().dtype(at::kFloat));
      fill(params.out, out);
      params.lse = lse.mutable_data_ptr<float>();
      const c10::DeviceGuard device(query.device());
      backend->attention_forward(params);
      return {out, lse};
    }
    tell_composite(query, reason);
  }
  return composite_forward(query, key, value, gates, bias, causal, scale);
}

// The last result is the gradient of the bias expanded to [B, H, T, S]; empty unless asked for.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> head_attention_backward(
    const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
    const optional<Tensor>& bias, const Tensor& out, const Tensor& lse, bool causal, optional<double> scale_option,
    bool bias_gradient) {
  check_inputs(query, key, value, gates, bias);
  const double scale = scale_or_default(scale_option, query);
  const auto empty_bias_gradient = [&] { return at::empty({0}, lse.options()); };
  if (has_kernels(query)) {
    const Tensor kernel_gates = kernel_gates_of(gates);
    const optional<Tensor> kernel_bias = as_kernel_bias(bias, query, key);
    auto params = make_params(query, key, value, kernel_gates, kernel_bias, causal, scale);
    std::string reason;
    if (const auto* backend = kernels::choose_backend(traits_of(params, true), &reason)) {
      const Tensor grad_query = at::empty(query.sizes(), query.options());
      const Tensor grad_key = at::empty(key.sizes(), key.options());
      const Tensor grad_value = at::empty(value.sizes(), value.options());
      const Tensor grad_gates = at::empty(gates.sizes(), lse.options());
      const Tensor grad_bias =
          bias_gradient ? at::empty({query.size(0), query.size(2), query.size(1), key.size(1)}, lse.options())
                        : empty_bias_gradient();
      const Tensor grad = grad_out.to(query.scalar_type());
      const Tensor lse_rows = lse.contiguous();
      fill(params.out_saved, out);
      fill(params.grad_out, grad);
      fill(params.grad_query, grad_query);
      fill(params.grad_key, grad_key);
      fill(params.grad_value, grad_value);
      params.lse = lse_rows.mutable_data_ptr<float>();
      params.grad_gates = grad_gates.mutable_data_ptr<float>();
      if (bias_gradient) params.grad_bias = grad_bias.mutable_data_ptr<float>();
      const c10::DeviceGuard device(query.device());
      backend->attention_backward(params);
      return {grad_query, grad_key, grad_value, grad_gates, grad_bias};
    }
  }
  auto grads = composite_backward(grad_out, query, key, value, gates, bias, out, lse, causal, scale);
  std::get<4>(grads) = bias_gradient ? std::get<4>(grads).contiguous() : empty_bias_gradient();
  return grads;
}

// Shapes only, for FakeTensor and torch.compile: sizes may be symbolic.
at::TensorOptions statistics_options(const Tensor& query) {
  return query.options().dtype(query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

std::tuple<Tensor, Tensor> head_attention_forward_meta(const Tensor& query, const Tensor& key, const Tensor&,
                                                       const Tensor&, const optional<Tensor>&, bool, optional<double>) {
  MOH_CHECK(query.dim() == 4 && key.dim() == 4, "[head_attention] query and key must have 4 dimensions, got ",
            query.dim(), " and ", key.dim());
  return {at::empty_symint(query.sym_sizes(), query.options()),
          at::empty_symint({query.sym_size(0), query.sym_size(2), query.sym_size(1)}, statistics_options(query))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> head_attention_backward_meta(
    const Tensor&, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
    const optional<Tensor>&, const Tensor&, const Tensor&, bool, optional<double>, bool bias_gradient) {
  const auto statistics = statistics_options(query);
  return {at::empty_symint(query.sym_sizes(), query.options()), at::empty_symint(key.sym_sizes(), key.options()),
          at::empty_symint(value.sym_sizes(), value.options()), at::empty_symint(gates.sym_sizes(), statistics),
          bias_gradient
              ? at::empty_symint({query.sym_size(0), query.sym_size(2), query.sym_size(1), key.sym_size(1)}, statistics)
              : at::empty({0}, statistics)};
}

using ForwardOp = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                             const optional<Tensor>&, bool, optional<double>);
using BackwardOp = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                                      const Tensor&, const Tensor&,
                                                                      const optional<Tensor>&, const Tensor&,
                                                                      const Tensor&, bool, optional<double>, bool);

const auto& forward_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("moh::head_attention_forward", "").typed<ForwardOp>();
  return op;
}

const auto& backward_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("moh::head_attention_backward", "").typed<BackwardOp>();
  return op;
}

class HeadAttentionFunction : public torch::autograd::Function<HeadAttentionFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const Tensor& query,
                                                const Tensor& key, const Tensor& value, const Tensor& gates,
                                                const optional<Tensor>& bias, bool causal, optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, lse] = forward_op().call(query, key, value, gates, bias, causal, scale);
    context->save_for_backward({query, key, value, gates, bias.value_or(Tensor()), out, lse});
    context->saved_data["causal"] = causal;
    context->saved_data["scale"] = scale;
    context->mark_non_differentiable({lse});
    return {out, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const Tensor& bias = saved[4];
    const bool bias_gradient = bias.defined() && bias.requires_grad();
    auto [grad_query, grad_key, grad_value, grad_gates, grad_bias] = backward_op().call(
        grads[0], saved[0], saved[1], saved[2], saved[3], bias.defined() ? optional<Tensor>(bias) : std::nullopt,
        saved[5], saved[6], context->saved_data["causal"].toBool(), context->saved_data["scale"].toOptional<double>(),
        bias_gradient);
    if (bias_gradient) {
      grad_bias = at::sum_to(grad_bias, bias.sym_sizes()).to(bias.scalar_type());
    }
    return {
        grad_query, grad_key, grad_value, grad_gates.to(saved[3].scalar_type()), bias_gradient ? grad_bias : Tensor(),
        Tensor(),   Tensor()};
  }
};

std::tuple<Tensor, Tensor> head_attention_forward_autograd(const Tensor& query, const Tensor& key, const Tensor& value,
                                                           const Tensor& gates, const optional<Tensor>& bias,
                                                           bool causal, optional<double> scale) {
  auto results = HeadAttentionFunction::apply(query, key, value, gates, bias, causal, scale);
  return {results[0], results[1]};
}

}  // namespace

at::Tensor head_attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
                          const optional<Tensor>& bias, bool causal, optional<double> scale) {
  return std::get<0>(forward_op().call(query, key, value, gates, bias, causal, scale));
}

at::Tensor head_attention_composite(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
                                    const optional<Tensor>& bias, bool causal, optional<double> scale_option) {
  check_inputs(query, key, value, gates, bias);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);  // fp32, as the kernels
  Tensor scores = masked_scores(query, key, bias, causal, scale_or_default(scale_option, query));
  const Tensor hidden = scores.eq(-kInfinity);
  const Tensor no_key = hidden.all(-1, /*keepdim=*/true);
  scores = scores.masked_fill(no_key, 0);  // keeps NaN out of the gradient of rows without keys
  const Tensor p = at::softmax(scores, -1).masked_fill(hidden, 0);
  return (times_value(p, value) * gates.to(scores.scalar_type()).unsqueeze(-1)).to(query.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(moh, m) {
  m.def(
      "head_attention(Tensor query, Tensor key, Tensor value, Tensor gates, *, Tensor? bias=None, bool causal=False, "
      "float? scale=None) -> Tensor",
      &head_attention);
  m.def(
      "head_attention_forward(Tensor query, Tensor key, Tensor value, Tensor gates, Tensor? bias, bool causal, "
      "float? scale) -> (Tensor out, Tensor lse)");
  m.def(
      "head_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor gates, Tensor? bias, "
      "Tensor out, Tensor lse, bool causal, float? scale, bool bias_gradient) -> (Tensor grad_query, Tensor grad_key, "
      "Tensor grad_value, Tensor grad_gates, Tensor grad_bias)");
}
TORCH_LIBRARY_IMPL(moh, CompositeExplicitAutograd, m) {
  m.impl("head_attention_forward", &head_attention_forward);
  m.impl("head_attention_backward", &head_attention_backward);
}
TORCH_LIBRARY_IMPL(moh, Meta, m) {
  m.impl("head_attention_forward", &head_attention_forward_meta);
  m.impl("head_attention_backward", &head_attention_backward_meta);
}
TORCH_LIBRARY_IMPL(moh, Autograd, m) { m.impl("head_attention_forward", &head_attention_forward_autograd); }

}  // namespace moh::ops
