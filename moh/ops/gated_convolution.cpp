#include "moh/ops/gated_convolution.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "moh/base/error.h"
#include "moh/kernels/backend.h"
#include "moh/ops/kernel_tensor.h"
#include "moh/ops/parallel.h"

namespace moh::ops {
namespace {

using at::Tensor;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;
constexpr std::int64_t kSide = 3, kPlaces = kSide * kSide;

void check_inputs(const Tensor& x, const Tensor& weight, const Tensor& bias, std::int64_t height, std::int64_t width) {
  MOH_CHECK(x.dim() == 3 && height > 0 && width > 0 && x.size(1) == height * width && x.size(2) % 2 == 0,
            "[gated_convolution] x must be [B, ", height, " * ", width, ", 2 C], got ", x.sizes());
  const std::int64_t channels = x.size(2) / 2;
  MOH_CHECK(
      weight.sizes() == at::IntArrayRef({channels, 1, kSide, kSide}) && bias.sizes() == at::IntArrayRef({channels}),
      "[gated_convolution] weight must be [", channels, ", 1, 3, 3] and bias [", channels, "], got ", weight.sizes(),
      " and ", bias.sizes());
  for (const Tensor* tensor : {&x, &weight, &bias}) {
    MOH_CHECK(at::isFloatingType(tensor->scalar_type()), "[gated_convolution] tensors must be of a floating type, got ",
              tensor->scalar_type());
    MOH_CHECK(tensor->device() == x.device(), "[gated_convolution] tensors must be on one device, got ", x.device(),
              " and ", tensor->device());
  }
}

// What the kernels read, kept alive for the call.
struct KernelCall {
  Tensor input, weight, bias;
  kernels::GatedConvolutionParams params;
  const kernels::Backend* backend = nullptr;

  KernelCall(const Tensor& x, const Tensor& w, const Tensor& b, std::int64_t height, std::int64_t width,
             bool backward) {
    if (!x.is_cpu() && !x.is_cuda()) return;
    std::string reason;
    backend = kernels::choose_backend(
        {kernel_dtype(x.scalar_type()), x.is_cpu(), 1, backward, kernels::Kernel::kGatedConvolution}, &reason);
    if (backend == nullptr) {
      if (x.scalar_type() != at::kDouble) {  // nothing falls back in silence; fp64 is meant to take this way
        TORCH_WARN_ONCE("moh::gated_convolution runs its composite form: ", reason);
      }
      return;
    }
    input = x.contiguous();
    weight = w.detach().to(at::kFloat).reshape({-1, kPlaces}).t().contiguous();
    bias = b.detach().to(at::kFloat).contiguous();
    params.batch = x.size(0);
    params.height = height;
    params.width = width;
    params.channels = x.size(2) / 2;
    params.dtype = kernel_dtype(x.scalar_type());
    params.input = input.const_data_ptr();
    params.weight = weight.const_data_ptr<float>();
    params.bias = bias.const_data_ptr<float>();
    params.parallel = torch_parallel();
  }
};

Tensor forward_any_device(const Tensor& x, const Tensor& weight, const Tensor& bias, std::int64_t height,
                          std::int64_t width) {
  check_inputs(x, weight, bias, height, width);
  KernelCall call(x, weight, bias, height, width, /*backward=*/false);
  if (call.backend == nullptr) return gated_convolution_composite(x, weight, bias, height, width).contiguous();
  const Tensor out = at::empty({x.size(0), x.size(1), x.size(2) / 2}, x.options());
  call.params.out = out.mutable_data_ptr();
  call.backend->gated_convolution_forward(call.params);
  return out;
}

Gradients backward_any_device(const Tensor& grad_out, const Tensor& x, const Tensor& weight, const Tensor& bias,
                              std::int64_t height, std::int64_t width) {
  check_inputs(x, weight, bias, height, width);
  MOH_CHECK(grad_out.sizes() == at::IntArrayRef({x.size(0), x.size(1), x.size(2) / 2}),
            "[gated_convolution] grad_out must be [", x.size(0), ", ", x.size(1), ", ", x.size(2) / 2, "], got ",
            grad_out.sizes());
  KernelCall call(x, weight, bias, height, width, /*backward=*/true);
  if (call.backend == nullptr) {
    // Called below autograd, whose keys are excluded here; the composite is differentiated by it.
    const auto keys = c10::impl::tls_local_dispatch_key_set();
    const c10::impl::ForceDispatchKeyGuard with_autograd(
        keys.included_, keys.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView);
    const c10::AutoGradMode with_gradients(true);
    std::vector<Tensor> leaves;
    for (const Tensor* tensor : {&x, &weight, &bias}) leaves.push_back(tensor->detach().requires_grad_(true));
    const Tensor out = gated_convolution_composite(leaves[0], leaves[1], leaves[2], height, width);
    const auto grads = torch::autograd::grad({out}, leaves, {grad_out.to(out.scalar_type())});
    return {grads[0].contiguous(), grads[1].contiguous(), grads[2].contiguous()};
  }
  const Tensor grad = grad_out.to(x.scalar_type()).contiguous(), grad_x = at::empty(x.sizes(), x.options());
  const Tensor grad_weight = at::empty({kPlaces, call.params.channels}, x.options().dtype(at::kFloat));
  const Tensor grad_bias = at::empty({call.params.channels}, grad_weight.options());
  call.params.grad_out = grad.const_data_ptr();
  call.params.grad_input = grad_x.mutable_data_ptr();
  call.params.grad_weight = grad_weight.mutable_data_ptr<float>();
  call.params.grad_bias = grad_bias.mutable_data_ptr<float>();
  call.backend->gated_convolution_backward(call.params);
  return {grad_x, grad_weight.t().to(weight.scalar_type()).contiguous().view(weight.sizes()),
          grad_bias.to(bias.scalar_type())};
}

using ForwardOp = Tensor(const Tensor&, const Tensor&, const Tensor&, std::int64_t, std::int64_t);
using BackwardOp = Gradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&, std::int64_t, std::int64_t);

const auto& forward_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("moh::gated_convolution", "").typed<ForwardOp>();
  return op;
}
const auto& backward_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("moh::gated_convolution_backward", "").typed<BackwardOp>();
  return op;
}

class GatedConvolution : public torch::autograd::Function<GatedConvolution> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const Tensor& bias, std::int64_t height, std::int64_t width) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({x, weight, bias});
    context->saved_data["height"] = height;
    context->saved_data["width"] = width;
    return forward_op().call(x, weight, bias, height, width);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto [x, weight, bias] =
        backward_op().call(grads[0], saved[0], saved[1], saved[2], context->saved_data["height"].toInt(),
                           context->saved_data["width"].toInt());
    return {x, weight, bias, Tensor(), Tensor()};
  }
};

Tensor forward_autograd(const Tensor& x, const Tensor& weight, const Tensor& bias, std::int64_t height,
                        std::int64_t width) {
  return GatedConvolution::apply(x, weight, bias, height, width);
}

Tensor forward_meta(const Tensor& x, const Tensor&, const Tensor&, std::int64_t, std::int64_t) {
  return at::empty_symint({x.sym_size(0), x.sym_size(1), x.sym_size(2) / 2}, x.options());
}

Gradients backward_meta(const Tensor&, const Tensor& x, const Tensor& weight, const Tensor& bias, std::int64_t,
                        std::int64_t) {
  return {at::empty_symint(x.sym_sizes(), x.options()), at::empty_symint(weight.sym_sizes(), weight.options()),
          at::empty_symint(bias.sym_sizes(), bias.options())};
}

}  // namespace

Tensor gated_convolution_composite(const Tensor& x, const Tensor& weight, const Tensor& bias, std::int64_t height,
                                   std::int64_t width) {
  check_inputs(x, weight, bias, height, width);
  const auto halves = x.chunk(2, -1);
  const std::int64_t channels = halves[0].size(2);
  const Tensor map = halves[0].transpose(1, 2).reshape({x.size(0), channels, height, width}).contiguous();
  const Tensor convolved = at::conv2d(map, weight.to(x.scalar_type()), bias.to(x.scalar_type()), /*stride=*/1,
                                      /*padding=*/1, /*dilation=*/1, channels);
  return at::gelu(convolved.flatten(2).transpose(1, 2)) * halves[1];
}

Tensor gated_convolution(const Tensor& x, const Tensor& weight, const Tensor& bias, std::int64_t height,
                         std::int64_t width) {
  return forward_op().call(x, weight, bias, height, width);
}

TORCH_LIBRARY_FRAGMENT(moh, m) {
  m.def("gated_convolution(Tensor x, Tensor weight, Tensor bias, int height, int width) -> Tensor");
  m.def(
      "gated_convolution_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor bias, int height, int width) -> "
      "(Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(moh, CompositeExplicitAutograd, m) {
  m.impl("gated_convolution", &forward_any_device);
  m.impl("gated_convolution_backward", &backward_any_device);
}
TORCH_LIBRARY_IMPL(moh, Meta, m) {
  m.impl("gated_convolution", &forward_meta);
  m.impl("gated_convolution_backward", &backward_meta);
}
TORCH_LIBRARY_IMPL(moh, Autograd, m) { m.impl("gated_convolution", &forward_autograd); }

}  // namespace moh::ops
