#include "moh/ops/linear.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "moh/ops/packed_linear.h"

namespace moh::ops {
namespace {

using at::Tensor;
using std::optional;

using OneDnn = Tensor(const Tensor&, const Tensor&, const optional<Tensor>&, std::string_view,
                      c10::List<optional<at::Scalar>>, optional<std::string_view>);

// nullopt: this LibTorch was built without oneDNN.
const optional<c10::TypedOperatorHandle<OneDnn>>& onednn_linear() {
  static const auto handle = [] {
    const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    return found && found->hasKernelForDispatchKey(c10::DispatchKey::CPU) ? optional(found->typed<OneDnn>())
                                                                          : std::nullopt;
  }();
  return handle;
}

// oneDNN rearranges the weight in every call, which few rows do not pay for.
constexpr std::int64_t kFewRows = 64;
// From here on, the copy of the transposed weight that the gradient of x needs is small beside the product.
constexpr std::int64_t kManyRows = 2048;

bool suits_onednn(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias) {
  const auto plain = [](const Tensor& tensor) {  // torch.compile traces with sizes that are symbols
    return tensor.is_cpu() && tensor.scalar_type() == at::kFloat &&
           !tensor.unsafeGetTensorImpl()->has_symbolic_sizes_strides();
  };
  if (!plain(x) || !plain(weight) || (bias && !plain(*bias))) return false;
  if (at::autocast::is_autocast_enabled(at::kCPU)) return false;
  if (x.dim() < 2 || weight.dim() != 2 || x.size(-1) != weight.size(1)) return false;
  // Strides that it has no kernel for take it a thousand times as long.
  return x.numel() >= kFewRows * x.size(-1) && x.is_contiguous() && weight.is_contiguous() && weight.numel() > 0 &&
         onednn_linear().has_value();
}

Tensor by_onednn(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const char* activation,
                 const char* form) {
  return onednn_linear()->call(x, weight, bias, activation, c10::List<optional<at::Scalar>>(), form);
}

// With gradients. That of the weight, and that of x for few rows, by LibTorch's other library, which takes transposed
// operands as they are: oneDNN would have them copied. oneDNN's operator has no derivative, so a gradient that is to be
// differentiated again never comes from it.
class OneDnnLinear : public torch::autograd::Function<OneDnnLinear> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const optional<Tensor>& bias) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({x, weight});
    context->saved_data["bias"] = bias.has_value() && bias->requires_grad();
    return by_onednn(x, weight, bias, "none", "");
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    const Tensor grad = grads[0].contiguous(), rows = grad.reshape({-1, grad.size(-1)});
    Tensor grad_x, grad_weight, grad_bias;
    if (context->needs_input_grad(0)) {
      grad_x = rows.size(0) >= kManyRows && !at::GradMode::is_enabled()
                   ? by_onednn(grad, weight.t().contiguous(), std::nullopt, "none", "")
                   : at::mm(rows, weight).view(x.sizes());
    }
    if (context->needs_input_grad(1)) {
      const Tensor x_rows = x.reshape({-1, x.size(-1)});
      // The wider result is the left operand's: up to a fifth faster.
      grad_weight = weight.size(0) >= weight.size(1) ? at::mm(rows.t(), x_rows) : at::mm(x_rows.t(), rows).t();
    }
    if (context->saved_data["bias"].toBool()) grad_bias = rows.sum(0);
    return {grad_x, grad_weight, grad_bias};
  }
};

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, Activation activation) {
  const bool gelu = activation != Activation::kNone;
  const char* const form = activation == Activation::kGeluTanh ? "tanh" : "none";
  if (RowwiseProducts::wanted() && x.is_cpu() && weight.is_cpu() && x.scalar_type() == at::kFloat) {
    const Tensor y = PackedWeight(weight, bias).apply(x);
    return gelu ? at::gelu(y, form) : y;
  }
  const bool gradients =
      at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad() || (bias && bias->requires_grad()));
  if (suits_onednn(x, weight, bias)) {
    if (!gradients) return by_onednn(x, weight, bias, gelu ? "gelu" : "none", gelu ? form : "");
    const Tensor y = OneDnnLinear::apply(x, weight, bias);
    return gelu ? at::gelu(y, form) : y;
  }
  const Tensor y = at::linear(x, weight, bias);
  return gelu ? at::gelu(y, form) : y;
}

}  // namespace moh::ops
