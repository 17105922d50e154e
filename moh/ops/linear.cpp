#include "moh/ops/linear.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <c10/core/GradMode.h>

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

bool suits_onednn(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias) {
  const auto plain = [](const Tensor& tensor) { return tensor.is_cpu() && tensor.scalar_type() == at::kFloat; };
  if (!plain(x) || !plain(weight) || (bias && !plain(*bias))) return false;
  if (at::autocast::is_autocast_enabled(at::kCPU)) return false;
  const bool gradients =
      at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad() || (bias && bias->requires_grad()));
  if (gradients || x.dim() < 2 || weight.dim() != 2 || x.size(-1) != weight.size(1)) return false;
  // Strides that it has no kernel for take it a thousand times as long.
  return x.numel() >= kFewRows * x.size(-1) && x.is_contiguous() && weight.is_contiguous() && weight.numel() > 0 &&
         onednn_linear().has_value();
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, Activation activation) {
  const bool gelu = activation == Activation::kGeluTanh;
  if (suits_onednn(x, weight, bias)) {
    return onednn_linear()->call(x, weight, bias, gelu ? "gelu" : "none", c10::List<optional<at::Scalar>>(),
                                 gelu ? "tanh" : "");
  }
  const Tensor y = at::linear(x, weight, bias);
  return gelu ? at::gelu(y, "tanh") : y;
}

}  // namespace moh::ops
