#include "moh/ops/projection.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "moh/base/error.h"
#include "moh/kernels/backend.h"
#include "moh/kernels/gpu/backend.h"
#include "moh/ops/kernel_tensor.h"
#include "moh/ops/linear.h"
#include "moh/ops/parallel.h"
#include "moh/ops/projection_cost.h"

namespace moh::ops {
namespace {

using at::Tensor;
using std::optional;

// Sizes of one call, checked. `heads_weight` is [H * D, C]: W_Q, or W_O transposed.
struct Sizes {
  std::int64_t rows, heads, head_dim, width;
};

void check_dtypes(const char* op, const Tensor& a, const Tensor& weight, const optional<Tensor>& bias,
                  const Tensor& gates) {
  MOH_CHECK(at::isFloatingType(a.scalar_type()) && a.scalar_type() == weight.scalar_type() &&
                (!bias || bias->scalar_type() == a.scalar_type()),
            "[", op, "] input, weight and bias must have one floating dtype, got ", a.scalar_type(), " and ",
            weight.scalar_type());
  MOH_CHECK(a.device() == weight.device() && a.device() == gates.device() && (!bias || bias->device() == a.device()),
            "[", op, "] input, weight, bias and gates must be on one device, got ", a.device(), ", ", weight.device(),
            " and ", gates.device());
}

Sizes check_project(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& gates) {
  MOH_CHECK(x.dim() >= 1 && weight.dim() == 2 && weight.size(1) == x.size(-1),
            "[project_heads] x must be [..., C] and weight [H * D, C], got ", x.sizes(), " and ", weight.sizes());
  MOH_CHECK(gates.dim() == x.dim() && gates.sizes().slice(0, gates.dim() - 1) == x.sizes().slice(0, x.dim() - 1) &&
                gates.size(-1) > 0 && weight.size(0) % gates.size(-1) == 0,
            "[project_heads] gates must be [..., H] beside x ", x.sizes(), ", H a divisor of the ", weight.size(0),
            " rows of weight; got ", gates.sizes());
  MOH_CHECK(!bias || bias->sizes() == weight.sizes().slice(0, 1), "[project_heads] bias must be [", weight.size(0),
            "], got ", bias->sizes());
  check_dtypes("project_heads", x, weight, bias, gates);
  const std::int64_t heads = gates.size(-1);
  return {gates.numel() / heads, heads, weight.size(0) / heads, x.size(-1)};
}

Sizes check_combine(const Tensor& input, const Tensor& weight, const optional<Tensor>& bias, const Tensor& gates) {
  MOH_CHECK(input.dim() >= 2 && weight.dim() == 2 && weight.size(1) == input.size(-1) * input.size(-2),
            "[combine_heads] heads must be [..., H, D] and weight [C, H * D], got ", input.sizes(), " and ",
            weight.sizes());
  MOH_CHECK(gates.sizes() == input.sizes().slice(0, input.dim() - 1),
            "[combine_heads] gates must be [..., H] = ", input.sizes().slice(0, input.dim() - 1), ", got ",
            gates.sizes());
  MOH_CHECK(!bias || bias->sizes() == weight.sizes().slice(0, 1), "[combine_heads] bias must be [", weight.size(0),
            "], got ", bias->sizes());
  check_dtypes("combine_heads", input, weight, bias, gates);
  const std::int64_t heads = input.size(-2);
  return {heads == 0 ? 0 : gates.numel() / heads, heads, input.size(-1), weight.size(0)};
}

// Of every operator here: the selection's lists, made from the gates where they are absent.
#define MOH_LISTS const optional<Tensor>&rows_of_heads, const optional<Tensor>&first_of_heads

struct Choice {
  const kernels::Backend* backend = nullptr;  // nullptr: the dense product
  bool all_selected = false;
};

// On a GPU, where nobody waits to learn the share of heads, kernels run if they are asked for.
Choice choose_on_gpu(const kernels::ProjectionParams& params) {
  const kernels::CallTraits call = {.dtype = params.dtype,
                                    .on_cpu = false,
                                    .head_dim = params.head_dim,
                                    .kernel = kernels::Kernel::kProjection,
                                    .projection = &params};
  std::string reason;
  const Choice choice = {.backend = kernels::choose_backend(call, &reason)};
  if (choice.backend == nullptr) {
    TORCH_WARN_ONCE("moh's projections are LibTorch's dense products, which skip no head: ", reason);
  }
  return choice;
}

Choice choose(Projection projection, const Tensor& a, const kernels::ProjectionParams& params) {
  if (a.is_cuda()) return choose_on_gpu(params);
  if (!a.is_cpu()) return {};  // no backend has a kernel for it
  Choice choice;
  const kernels::Selection& selection = params.selection;
  const std::int64_t active = selection.total(), all = selection.num_rows * selection.num_heads;
  choice.all_selected = active == all;
  const kernels::CallTraits call = {
      .dtype = params.dtype, .head_dim = params.head_dim, .kernel = kernels::Kernel::kProjection};
  const auto* backend = kernels::choose_backend(call, nullptr);
  const double share = all == 0 ? 0 : static_cast<double>(active) / static_cast<double>(all);
  if (backend != nullptr && (!backend->automatic() || skipping_pays(projection, backend->name, selection.num_rows,
                                                                    params.head_dim, share, a.scalar_type()))) {
    choice.backend = backend;
  }
  return choice;
}

kernels::ProjectionParams make_params(const Sizes& sizes, const Tensor& a, const kernels::Selection& selection) {
  kernels::ProjectionParams p;
  p.selection = selection;
  p.head_dim = sizes.head_dim;
  p.width = sizes.width;
  p.dtype = kernel_dtype(a.scalar_type());
  p.on_cpu = a.is_cpu();
  p.stream = current_stream(a);
  p.parallel = torch_parallel();
  return p;
}

void set_weight(kernels::ProjectionParams& p, const Tensor& weight, bool columns_are_heads) {
  const std::int64_t head_stride = weight.stride(columns_are_heads ? 1 : 0);
  p.weight.data = weight.const_data_ptr();
  p.weight.stride[0] = head_stride * p.head_dim;
  p.weight.stride[1] = head_stride;
  p.weight.stride[2] = weight.stride(columns_are_heads ? 0 : 1);
}

Tensor project_heads_forward(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& gates,
                             MOH_LISTS) {
  const Sizes sizes = check_project(x, weight, bias, gates);
  auto shape = gates.sizes().vec();
  shape.push_back(sizes.head_dim);
  const KernelSelection selection(gates, rows_of_heads, first_of_heads);
  const auto device = on_device_of(x);
  auto p = make_params(sizes, x, selection.view);
  set_weight(p, weight, false);
  const Choice choice = choose(Projection::kValues, x, p);
  if (choice.backend == nullptr) {
    const Tensor heads = moh::ops::linear(x, weight, bias).reshape(shape);
    return choice.all_selected ? heads : heads.masked_fill(gates.eq(0).unsqueeze(-1), 0);
  }
  const Tensor rows = kernel_layout_of(x.reshape({sizes.rows, sizes.width}));
  const Tensor out = at::empty({sizes.rows, sizes.heads, sizes.head_dim}, x.options());
  fill(p.x, rows);
  const Tensor plain_bias = bias ? bias->contiguous() : Tensor();
  if (bias) p.bias = plain_bias.const_data_ptr();
  fill(p.out, out);
  choice.backend->project_heads(p);
  return out.view(shape);
}

Tensor combine_heads_forward(const Tensor& heads, const Tensor& weight, const optional<Tensor>& bias,
                             const Tensor& gates, MOH_LISTS) {
  const Sizes sizes = check_combine(heads, weight, bias, gates);
  auto shape = gates.sizes().vec();
  shape.back() = sizes.width;
  const KernelSelection selection(gates, rows_of_heads, first_of_heads);
  const auto device = on_device_of(heads);
  auto p = make_params(sizes, heads, selection.view);
  set_weight(p, weight, true);
  const bool dense = heads.is_cuda() && sizes.rows > kernels::gpu::most_combined_rows();
  const Choice choice = dense ? Choice() : choose(Projection::kValues, heads, p);
  if (choice.backend == nullptr) {
    const Tensor selected = choice.all_selected ? heads : heads.masked_fill(gates.eq(0).unsqueeze(-1), 0);
    return moh::ops::linear(selected.flatten(-2), weight, bias);
  }
  const Tensor rows = kernel_layout_of(heads.reshape({sizes.rows, sizes.heads, sizes.head_dim}));
  const Tensor out = at::empty({sizes.rows, sizes.width}, heads.options());
  fill(p.heads, rows);
  const Tensor plain_bias = bias ? bias->contiguous() : Tensor();
  if (bias) p.bias = plain_bias.const_data_ptr();
  p.out.data = out.mutable_data_ptr();
  p.out.stride[0] = out.stride(0);
  p.out.stride[1] = out.stride(1);
  choice.backend->combine_heads(p);
  return out.view(shape);
}

// sum over rows of heads[r, h, :]^T x[r, :] where gates[r, h] is not zero: [H * D, C], or [C, H * D] if `transposed`.
Tensor head_weight_gradient(const Tensor& heads, const Tensor& x, const Tensor& gates, bool transposed, MOH_LISTS) {
  MOH_CHECK(heads.dim() >= 2 && x.dim() == heads.dim() - 1 && gates.sizes() == heads.sizes().slice(0, gates.dim()) &&
                x.sizes().slice(0, x.dim() - 1) == gates.sizes().slice(0, gates.dim() - 1),
            "[head_weight_gradient] heads must be [..., H, D], x [..., C], gates [..., H], got ", heads.sizes(), ", ",
            x.sizes(), " and ", gates.sizes());
  check_dtypes("head_weight_gradient", heads, x, std::nullopt, gates);
  const std::int64_t num_heads = heads.size(-2), width = x.size(-1);
  const Sizes sizes = {num_heads == 0 ? 0 : gates.numel() / num_heads, num_heads, heads.size(-1), width};
  const KernelSelection selection(gates, rows_of_heads, first_of_heads);
  const auto device = on_device_of(heads);
  auto p = make_params(sizes, heads, selection.view);
  const Choice choice = choose(Projection::kWeightGradient, heads, p);
  const Tensor x_rows = x.reshape({sizes.rows, width});
  if (choice.backend == nullptr) {
    const Tensor selected = choice.all_selected ? heads : heads.masked_fill(gates.eq(0).unsqueeze(-1), 0);
    const Tensor head_rows = selected.reshape({sizes.rows, num_heads * sizes.head_dim});
    return transposed ? at::matmul(x_rows.t(), head_rows) : at::matmul(head_rows.t(), x_rows);
  }
  const Tensor head_rows = kernel_layout_of(heads.reshape({sizes.rows, num_heads, sizes.head_dim}));
  const Tensor kernel_rows = kernel_layout_of(x_rows);
  const std::int64_t columns = num_heads * sizes.head_dim;
  const Tensor out = transposed ? at::empty({width, columns}, x.options()) : at::empty({columns, width}, x.options());
  fill(p.heads, head_rows);
  fill(p.x, kernel_rows);
  const std::int64_t head_stride = out.stride(transposed ? 1 : 0);
  p.out.data = out.mutable_data_ptr();
  p.out.stride[0] = head_stride * sizes.head_dim;
  p.out.stride[1] = head_stride;
  p.out.stride[2] = out.stride(transposed ? 0 : 1);
  choice.backend->weight_gradient(p);
  return out;
}

using ProjectionOp = Tensor(const Tensor&, const Tensor&, const optional<Tensor>&, const Tensor&,
                            const optional<Tensor>&, const optional<Tensor>&);
using GradientOp = Tensor(const Tensor&, const Tensor&, const Tensor&, bool, const optional<Tensor>&,
                          const optional<Tensor>&);

const auto& project_op() {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("moh::project_heads", "").typed<ProjectionOp>();
  return op;
}
const auto& combine_op() {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("moh::combine_heads", "").typed<ProjectionOp>();
  return op;
}
const auto& gradient_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("moh::head_weight_gradient", "").typed<GradientOp>();
  return op;
}

// What the backward passes of both need.
void save(torch::autograd::AutogradContext* context, const Tensor& input, const Tensor& weight,
          const optional<Tensor>& bias, const Tensor& gates, MOH_LISTS) {
  context->save_for_backward(
      {input, weight, gates, rows_of_heads.value_or(Tensor()), first_of_heads.value_or(Tensor())});
  context->saved_data["bias"] = bias.has_value() && bias->requires_grad();
}

class ProjectHeads : public torch::autograd::Function<ProjectHeads> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& weight,
                        const optional<Tensor>& bias, const Tensor& gates, MOH_LISTS) {
    at::AutoDispatchBelowADInplaceOrView guard;
    save(context, x, weight, bias, gates, rows_of_heads, first_of_heads);
    return project_op().call(x, weight, bias, gates, rows_of_heads, first_of_heads);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &gates = saved[2];
    const Tensor grad = grads[0].to(x.scalar_type());
    const optional<Tensor> rows = if_defined(saved[3]), first = if_defined(saved[4]);
    Tensor grad_x, grad_weight, grad_bias;
    if (context->needs_input_grad(0)) grad_x = combine_op().call(grad, weight.t(), std::nullopt, gates, rows, first);
    if (context->needs_input_grad(1)) grad_weight = gradient_op().call(grad, x, gates, false, rows, first);
    if (context->saved_data["bias"].toBool()) {
      grad_bias = grad.masked_fill(gates.eq(0).unsqueeze(-1), 0).flatten(-2).flatten(0, -2).sum(0);
    }
    return {grad_x, grad_weight, grad_bias, Tensor(), Tensor(), Tensor()};
  }
};

class CombineHeads : public torch::autograd::Function<CombineHeads> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& heads, const Tensor& weight,
                        const optional<Tensor>& bias, const Tensor& gates, MOH_LISTS) {
    at::AutoDispatchBelowADInplaceOrView guard;
    save(context, heads, weight, bias, gates, rows_of_heads, first_of_heads);
    return combine_op().call(heads, weight, bias, gates, rows_of_heads, first_of_heads);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &heads = saved[0], &weight = saved[1], &gates = saved[2];
    const Tensor grad = grads[0].to(heads.scalar_type());
    const optional<Tensor> rows = if_defined(saved[3]), first = if_defined(saved[4]);
    Tensor grad_heads, grad_weight, grad_bias;
    if (context->needs_input_grad(0))
      grad_heads = project_op().call(grad, weight.t(), std::nullopt, gates, rows, first);
    if (context->needs_input_grad(1)) grad_weight = gradient_op().call(heads, grad, gates, true, rows, first);
    if (context->saved_data["bias"].toBool()) grad_bias = grad.flatten(0, -2).sum(0);
    return {grad_heads, grad_weight, grad_bias, Tensor(), Tensor(), Tensor()};
  }
};

Tensor project_heads_autograd(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& gates,
                              MOH_LISTS) {
  return ProjectHeads::apply(x, weight, bias, gates, rows_of_heads, first_of_heads);
}
Tensor combine_heads_autograd(const Tensor& heads, const Tensor& weight, const optional<Tensor>& bias,
                              const Tensor& gates, MOH_LISTS) {
  return CombineHeads::apply(heads, weight, bias, gates, rows_of_heads, first_of_heads);
}

// Under autocast like at::linear: input, weight and bias in its dtype.
template <at::DeviceType device, const auto& op>
Tensor in_autocast(const Tensor& input, const Tensor& weight, const optional<Tensor>& bias, const Tensor& gates,
                   MOH_LISTS) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto type = at::autocast::get_autocast_dtype(device);
  return op().call(at::autocast::cached_cast(type, input, device), at::autocast::cached_cast(type, weight, device),
                   at::autocast::cached_cast(type, bias, device), gates, rows_of_heads, first_of_heads);
}

Tensor project_heads_meta(const Tensor& x, const Tensor& weight, const optional<Tensor>&, const Tensor& gates,
                          const optional<Tensor>&, const optional<Tensor>&) {
  auto shape = gates.sym_sizes().vec();
  shape.push_back(weight.sym_size(0) / gates.sym_size(-1));
  return at::empty_symint(shape, x.options());
}
Tensor combine_heads_meta(const Tensor& heads, const Tensor& weight, const optional<Tensor>&, const Tensor& gates,
                          const optional<Tensor>&, const optional<Tensor>&) {
  auto shape = gates.sym_sizes().vec();
  shape.back() = weight.sym_size(0);
  return at::empty_symint(shape, heads.options());
}
Tensor head_weight_gradient_meta(const Tensor& heads, const Tensor& x, const Tensor&, bool transposed,
                                 const optional<Tensor>&, const optional<Tensor>&) {
  const auto columns = heads.sym_size(-1) * heads.sym_size(-2), width = x.sym_size(-1);
  return transposed ? at::empty_symint({width, columns}, x.options()) : at::empty_symint({columns, width}, x.options());
}

}  // namespace

Tensor project_heads(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Selection& selection) {
  return project_op().call(x, weight, bias, selection.gates, if_defined(selection.rows), if_defined(selection.first));
}
Tensor project_heads(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& gates) {
  return project_op().call(x, weight, bias, gates, std::nullopt, std::nullopt);
}

Tensor combine_heads(const Tensor& heads, const Tensor& weight, const optional<Tensor>& bias,
                     const Selection& selection) {
  return combine_op().call(heads, weight, bias, selection.gates, if_defined(selection.rows),
                           if_defined(selection.first));
}
Tensor combine_heads(const Tensor& heads, const Tensor& weight, const optional<Tensor>& bias, const Tensor& gates) {
  return combine_op().call(heads, weight, bias, gates, std::nullopt, std::nullopt);
}

bool skips_heads(const Tensor& x, std::int64_t head_dim, double share) {
  if (!x.is_cpu()) return false;
  if (x.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) return true;  // traced: the operators decide as they run
  if (x.size(-1) == 0) return false;
  const auto type =
      at::autocast::is_autocast_enabled(at::kCPU) ? at::autocast::get_autocast_dtype(at::kCPU) : x.scalar_type();
  const auto* backend =
      kernels::choose_backend({kernel_dtype(type), true, head_dim, false, kernels::Kernel::kProjection}, nullptr);
  return backend != nullptr && (!backend->automatic() || skipping_pays(Projection::kValues, backend->name,
                                                                       x.numel() / x.size(-1), head_dim, share, type));
}

TORCH_LIBRARY_FRAGMENT(moh, m) {
  m.def(
      "project_heads(Tensor x, Tensor weight, Tensor? bias, Tensor gates, Tensor? rows=None, Tensor? first=None) -> Tensor");
  m.def(
      "combine_heads(Tensor heads, Tensor weight, Tensor? bias, Tensor gates, Tensor? rows=None, Tensor? first=None) -> Tensor");
  m.def(
      "head_weight_gradient(Tensor heads, Tensor x, Tensor gates, bool transposed, Tensor? rows=None, Tensor? "
      "first=None) -> Tensor");
}
TORCH_LIBRARY_IMPL(moh, CompositeExplicitAutograd, m) {
  m.impl("project_heads", &project_heads_forward);
  m.impl("combine_heads", &combine_heads_forward);
  m.impl("head_weight_gradient", &head_weight_gradient);
}
TORCH_LIBRARY_IMPL(moh, Autograd, m) {
  m.impl("project_heads", &project_heads_autograd);
  m.impl("combine_heads", &combine_heads_autograd);
}
TORCH_LIBRARY_IMPL(moh, AutocastCPU, m) {
  m.impl("project_heads", &in_autocast<at::kCPU, project_op>);
  m.impl("combine_heads", &in_autocast<at::kCPU, combine_op>);
}
TORCH_LIBRARY_IMPL(moh, AutocastCUDA, m) {
  m.impl("project_heads", &in_autocast<at::kCUDA, project_op>);
  m.impl("combine_heads", &in_autocast<at::kCUDA, combine_op>);
}
TORCH_LIBRARY_IMPL(moh, Meta, m) {
  m.impl("project_heads", &project_heads_meta);
  m.impl("combine_heads", &combine_heads_meta);
  m.impl("head_weight_gradient", &head_weight_gradient_meta);
}

}  // namespace moh::ops
