// Derivatives of the operators that compute derivatives: right where they are cheap to state, an error elsewhere; never
// a silent zero. First derivatives pass by here without cost.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "moh/base/error.h"
#include "moh/ops/head_attention.h"
#include "moh/ops/projection.h"

namespace moh::ops {
namespace {

using at::Tensor;
using std::optional;
using AttentionGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using AttentionBackward = AttentionGradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                             const optional<Tensor>&, const Tensor&, const Tensor&, bool,
                                             optional<double>, bool, const optional<Tensor>&, const optional<Tensor>&,
                                             std::int64_t, double, const optional<Tensor>&);

// The gradients once more as torch's operations, from the composite form, when somebody wants to differentiate them.
AttentionGradients differentiable_gradients(const Tensor& grad_out, const Tensor& query, const Tensor& key,
                                            const Tensor& value, const Tensor& gates, AttentionVariant variant,
                                            at::ScalarType statistics, bool bias_gradient) {
  // Inputs may depend on one another: gradients are taken with respect to aliases, which depend on nothing but theirs.
  const auto input = [](const Tensor& tensor) {
    return tensor.requires_grad() ? tensor.view_as(tensor) : tensor.detach().requires_grad_(true);
  };
  std::vector<Tensor> inputs = {input(query), input(key), input(value), input(gates)};
  if (bias_gradient) {
    inputs.push_back(input(variant.bias->expand({query.size(0), query.size(2), query.size(1), key.size(1)})));
    variant.bias = inputs.back();
  }
  const Tensor out = head_attention_composite(inputs[0], inputs[1], inputs[2], inputs[3], variant)
                         .masked_fill(gates.eq(0).unsqueeze(-1), 0);  // the operator gives no gradient to those gates
  auto grads = torch::autograd::grad({out}, inputs, {grad_out.to(out.scalar_type())}, /*retain_graph=*/true,
                                     /*create_graph=*/true);
  return {grads[0], grads[1], grads[2], grads[3].to(statistics),
          bias_gradient ? grads[4].to(statistics) : at::empty({0}, query.options().dtype(statistics))};
}

AttentionGradients head_attention_backward(const Tensor& grad_out, const Tensor& query, const Tensor& key,
                                           const Tensor& value, const Tensor& gates, const optional<Tensor>& bias,
                                           const Tensor& out, const Tensor& lse, bool causal, optional<double> scale,
                                           bool bias_gradient, const optional<Tensor>& rows,
                                           const optional<Tensor>& first, std::int64_t window, double soft_cap,
                                           const optional<Tensor>& sink) {
  bool differentiated = bias && bias->requires_grad();
  for (const Tensor* tensor : {&grad_out, &query, &key, &value, &gates}) differentiated |= tensor->requires_grad();
  if (differentiated && at::GradMode::is_enabled()) {
    MOH_CHECK(!sink || !sink->requires_grad(),
              "[head_attention] no second derivative is known where a sink has a gradient; detach the sink");
    return differentiable_gradients(grad_out, query, key, value, gates, {causal, window, soft_cap, bias, sink, scale},
                                    lse.scalar_type(), bias_gradient);
  }
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("moh::head_attention_backward", "").typed<AttentionBackward>();
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(grad_out, query, key, value, gates, bias, out, lse, causal, scale, bias_gradient, rows, first, window,
                 soft_cap, sink);
}

Tensor call_weight_gradient(const Tensor& heads, const Tensor& x, const Tensor& gates, bool transposed,
                            const optional<Tensor>& rows, const optional<Tensor>& first) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("moh::head_weight_gradient", "")
                             .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, bool, const optional<Tensor>&,
                                           const optional<Tensor>&)>();
  return op.call(heads, x, gates, transposed, rows, first);
}

// heads^T x, linear in both.
class HeadWeightGradient : public torch::autograd::Function<HeadWeightGradient> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& heads, const Tensor& x,
                        const Tensor& gates, bool transposed, const optional<Tensor>& rows,
                        const optional<Tensor>& first) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({heads, x, gates});
    context->saved_data["transposed"] = transposed;
    return call_weight_gradient(heads, x, gates, transposed, rows, first);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &heads = saved[0], &x = saved[1], &gates = saved[2];
    const Tensor none;
    const Tensor grad = context->saved_data["transposed"].toBool() ? grads[0].t() : grads[0];  // [H * D, C]
    Tensor grad_heads, grad_x;
    if (context->needs_input_grad(0)) grad_heads = project_heads(x, grad.to(x.scalar_type()), std::nullopt, gates);
    if (context->needs_input_grad(1)) {
      grad_x = combine_heads(heads, grad.t().to(heads.scalar_type()), std::nullopt, gates);
    }
    return {grad_heads, grad_x, none, none, none, none};
  }
};

Tensor head_weight_gradient(const Tensor& heads, const Tensor& x, const Tensor& gates, bool transposed,
                            const optional<Tensor>& rows, const optional<Tensor>& first) {
  return HeadWeightGradient::apply(heads, x, gates, transposed, rows, first);
}

}  // namespace

TORCH_LIBRARY_IMPL(moh, Autograd, m) {
  m.impl("head_attention_backward", &head_attention_backward);
  m.impl("head_weight_gradient", &head_weight_gradient);
  m.impl("aggregated_attention_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("gated_convolution_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace moh::ops
