#include "moh/ops/aggregated_attention.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <limits>
#include <vector>

#include "moh/base/error.h"
#include "moh/kernels/backend.h"
#include "moh/ops/kernel_tensor.h"
#include "moh/ops/parallel.h"
#include "moh/ops/selection.h"

namespace moh::ops {
namespace {

using at::Tensor;
using std::optional;
constexpr double kNormFloor = 1e-12;

void check_inputs(const AggregatedInputs& in) {
  MOH_CHECK(in.query.dim() == 4, "[aggregated_attention] query must be [B, N, H, D], got ", in.query.sizes());
  const std::int64_t batch = in.query.size(0), tokens = in.query.size(1), heads = in.query.size(2);
  const std::int64_t dim = in.query.size(3), places = in.window * in.window;
  MOH_CHECK(in.window > 0 && in.window % 2 == 1, "[aggregated_attention] window must be odd, got ", in.window);
  MOH_CHECK(in.height > 0 && in.width > 0 && in.height * in.width == tokens, "[aggregated_attention] a map of ",
            in.height, " x ", in.width, " does not have ", tokens, " tokens");
  MOH_CHECK(dim > 0 && heads > 0, "[aggregated_attention] heads and head size must not be zero");
  MOH_CHECK(in.pool_key.dim() == 4, "[aggregated_attention] pool_key must be [B, M, H, D], got ", in.pool_key.sizes());
  const std::int64_t pooled = in.pool_key.size(1);
  const struct {
    const char* name;
    const Tensor& tensor;
    std::vector<std::int64_t> shape;
  } kWanted[] = {{"key", in.key, {batch, tokens, heads, dim}},
                 {"value", in.value, {batch, tokens, heads, dim}},
                 {"pool_key", in.pool_key, {batch, pooled, heads, dim}},
                 {"pool_value", in.pool_value, {batch, pooled, heads, dim}},
                 {"gates", in.gates, {batch, tokens, heads}},
                 {"query_embedding", in.query_embedding, {heads, dim}},
                 {"temperature", in.temperature, {heads}},
                 {"position_scale", in.position_scale, {tokens}},
                 {"local_bias", in.local_bias, {heads, places}},
                 {"pool_bias", in.pool_bias, {heads, tokens, pooled}},
                 {"tokens", in.tokens, {heads, dim, places}},
                 {"token_bias", in.token_bias, {heads, places}}};
  for (const auto& [name, tensor, shape] : kWanted) {
    MOH_CHECK(tensor.sizes() == at::IntArrayRef(shape), "[aggregated_attention] ", name, " must be ",
              at::IntArrayRef(shape), ", got ", tensor.sizes());
    MOH_CHECK(at::isFloatingType(tensor.scalar_type()), "[aggregated_attention] ", name,
              " must be of a floating type, got ", tensor.scalar_type());
    MOH_CHECK(tensor.device() == in.query.device(), "[aggregated_attention] ", name, " must be on ", in.query.device(),
              ", got ", tensor.device());
  }
  for (const Tensor* tensor : {&in.key, &in.value, &in.pool_key, &in.pool_value}) {
    MOH_CHECK(tensor->scalar_type() == in.query.scalar_type(),
              "[aggregated_attention] queries, keys and values must have one dtype, got ", in.query.scalar_type(),
              " and ", tensor->scalar_type());
  }
}

Tensor normalized(const Tensor& rows) {
  return rows / at::linalg_vector_norm(rows, 2, {-1}, /*keepdim=*/true).clamp_min(kNormFloor);
}

// [B, N, H, D] -> [B, H, N, W, D]: the rows of each token's window, zeros beyond the map's edge.
Tensor windows(const Tensor& rows, const AggregatedInputs& in) {
  const std::int64_t batch = rows.size(0), heads = rows.size(2), dim = rows.size(3), half = in.window / 2;
  const Tensor map = rows.reshape({batch, in.height, in.width, heads * dim}).permute({0, 3, 1, 2});
  const Tensor unfolded =
      at::im2col(map.contiguous(), {in.window, in.window}, {1, 1}, {half, half}, {1, 1});  // [B, H * D * W, N]
  return unfolded.reshape({batch, heads, dim, in.window * in.window, -1}).permute({0, 1, 4, 3, 2});
}

// [N, W]: true where a window's place lies outside the map.
Tensor outside(const AggregatedInputs& in) {
  const std::int64_t half = in.window / 2;
  const Tensor inside = at::ones({1, 1, in.height, in.width}, in.query.options().dtype(at::kFloat));
  return at::im2col(inside, {in.window, in.window}, {1, 1}, {half, half}, {1, 1}).squeeze(0).t().eq(0);
}

}  // namespace

Tensor aggregated_attention_composite(const AggregatedInputs& in) {
  check_inputs(in);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);  // fp32, as the kernels
  const auto type = in.query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const std::int64_t places = in.window * in.window;
  const Tensor query = normalized(in.query.to(type).transpose(1, 2));  // [B, H, N, D]
  const Tensor scaled = (query + in.query_embedding.to(type).unsqueeze(1)) *
                        in.temperature.to(type).reshape({-1, 1, 1}) * in.position_scale.to(type).unsqueeze(-1);

  const Tensor local_key = windows(normalized(in.key.to(type)), in), local_value = windows(in.value.to(type), in);
  Tensor local = at::matmul(local_key, scaled.unsqueeze(-1)).squeeze(-1);  // [B, H, N, W]
  local =
      (local + in.local_bias.to(type).unsqueeze(1)).masked_fill(outside(in), -std::numeric_limits<double>::infinity());
  const Tensor pool_key = normalized(in.pool_key.to(type)).permute({0, 2, 3, 1});  // [B, H, D, M]
  const Tensor pool = at::matmul(scaled, pool_key) + in.pool_bias.to(type);        // [B, H, N, M]

  const Tensor weights = at::softmax(at::cat({local, pool}, -1), -1);
  const Tensor learned = at::matmul(query, in.tokens.to(type)) + in.token_bias.to(type).unsqueeze(1);
  const Tensor local_weights = weights.narrow(-1, 0, places) + learned;
  const Tensor pool_weights = weights.narrow(-1, places, weights.size(-1) - places);
  const Tensor sum = at::matmul(local_weights.unsqueeze(-2), local_value).squeeze(-2) +
                     at::matmul(pool_weights, in.pool_value.to(type).transpose(1, 2));
  return (sum.transpose(1, 2) * in.gates.to(type).unsqueeze(-1)).to(in.query.scalar_type());
}

namespace {

// The differentiable inputs in the order of the operator's schema; position_scale, which is not one, stands apart.
constexpr std::size_t kInputs = 12;
using Inputs = std::array<Tensor, kInputs>;

AggregatedInputs inputs_of(const Inputs& all, const Tensor& position_scale, std::int64_t height, std::int64_t width,
                           std::int64_t window, const optional<Tensor>& rows, const optional<Tensor>& first) {
  return {all[0],
          all[1],
          all[2],
          all[3],
          all[4],
          all[5],
          all[6],
          all[7],
          position_scale,
          all[8],
          all[9],
          all[10],
          all[11],
          height,
          width,
          window,
          rows.value_or(Tensor()),
          first.value_or(Tensor())};
}

// Shape functions and the like have all of an operator's inputs and use some.
#pragma GCC diagnostic ignored "-Wunused-parameter"

#define MOH_AGGREGATED_INPUTS                                                                                    \
  const Tensor &query, const Tensor &key, const Tensor &value, const Tensor &pool_key, const Tensor &pool_value, \
      const Tensor &gates, const Tensor &query_embedding, const Tensor &temperature, const Tensor &local_bias,   \
      const Tensor &pool_bias, const Tensor &tokens, const Tensor &token_bias, const Tensor &position_scale,     \
      std::int64_t height, std::int64_t width, std::int64_t window, const optional<Tensor>&rows,                 \
      const optional<Tensor>&first
#define MOH_AGGREGATED_LIST                                                                                      \
  {                                                                                                              \
    query, key, value, pool_key, pool_value, gates, query_embedding, temperature, local_bias, pool_bias, tokens, \
        token_bias                                                                                               \
  }

Tensor call_forward(const Inputs& in, const Tensor& position_scale, std::int64_t height, std::int64_t width,
                    std::int64_t window, const optional<Tensor>& rows, const optional<Tensor>& first) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("moh::aggregated_attention", "")
                             .typed<Tensor(MOH_AGGREGATED_INPUTS)>();
  return op.call(in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], in[8], in[9], in[10], in[11], position_scale,
                 height, width, window, rows, first);
}

std::vector<Tensor> call_backward(const Tensor& grad_out, const Inputs& in, const Tensor& position_scale,
                                  std::int64_t height, std::int64_t width, std::int64_t window,
                                  const optional<Tensor>& rows, const optional<Tensor>& first) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("moh::aggregated_attention_backward", "")
                             .typed<std::vector<Tensor>(const Tensor&, MOH_AGGREGATED_INPUTS)>();
  return op.call(grad_out, in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], in[8], in[9], in[10], in[11],
                 position_scale, height, width, window, rows, first);
}

// What the kernels read as contiguous fp32; kept alive for the call.
struct KernelCall {
  KernelSelection selection;
  std::array<Tensor, 7> plain;
  kernels::AggregatedAttentionParams params;
  const kernels::Backend* backend = nullptr;

  KernelCall(const AggregatedInputs& in, bool backward)
      : selection(in.gates, if_defined(in.rows), if_defined(in.first)) {
    if (!in.query.is_cpu() && !in.query.is_cuda()) return;
    std::string reason;
    backend = kernels::choose_backend({kernel_dtype(in.query.scalar_type()), in.query.is_cpu(), in.query.size(3),
                                       backward, kernels::Kernel::kAggregated},
                                      &reason);
    if (backend == nullptr) {
      // Nothing falls back in silence; fp64 is meant to take this way.
      if (in.query.scalar_type() != at::kDouble) {
        TORCH_WARN_ONCE("moh::aggregated_attention runs its composite form: ", reason);
      }
      return;
    }
    plain = {kernel_gates_of(in.query_embedding), kernel_gates_of(in.temperature), kernel_gates_of(in.position_scale),
             kernel_gates_of(in.local_bias),      kernel_gates_of(in.pool_bias),   kernel_gates_of(in.tokens),
             kernel_gates_of(in.token_bias)};
    auto& p = params;
    p.batch = in.query.size(0);
    p.height = in.height;
    p.width = in.width;
    p.pooled = in.pool_key.size(1);
    p.num_heads = in.query.size(2);
    p.head_dim = in.query.size(3);
    p.window = in.window;
    p.dtype = kernel_dtype(in.query.scalar_type());
    fill(p.query, in.query);
    fill(p.key, in.key);
    fill(p.value, in.value);
    fill(p.pool_key, in.pool_key);
    fill(p.pool_value, in.pool_value);
    p.selection = selection.view;
    const float** const targets[] = {&p.query_embedding, &p.temperature, &p.position_scale, &p.local_bias,
                                     &p.pool_bias,       &p.tokens,      &p.token_bias};
    for (std::size_t i = 0; i < plain.size(); ++i) *targets[i] = plain[i].const_data_ptr<float>();
    p.parallel = torch_parallel();
  }
};

// As the fused form: no gradient to gates that are zero.
Tensor composite_skipping(const AggregatedInputs& in) {
  return aggregated_attention_composite(in).masked_fill(in.gates.eq(0).unsqueeze(-1), 0);
}

Tensor forward_any_device(MOH_AGGREGATED_INPUTS) {
  const AggregatedInputs in = inputs_of(MOH_AGGREGATED_LIST, position_scale, height, width, window, rows, first);
  check_inputs(in);
  KernelCall call(in, /*backward=*/false);
  if (call.backend == nullptr) return composite_skipping(in).contiguous();
  const Tensor out = at::empty(query.sizes(), query.options());
  fill(call.params.out, out);
  call.backend->aggregated_forward(call.params);
  return out;
}

std::vector<Tensor> backward_any_device(const Tensor& grad_out, MOH_AGGREGATED_INPUTS) {
  const Inputs all = MOH_AGGREGATED_LIST;
  const AggregatedInputs in = inputs_of(all, position_scale, height, width, window, rows, first);
  check_inputs(in);
  MOH_CHECK(grad_out.sizes() == query.sizes(), "[aggregated_attention] grad_out must be ", query.sizes(), ", got ",
            grad_out.sizes());
  KernelCall call(in, /*backward=*/true);
  if (call.backend == nullptr) {
    // Called below autograd, whose keys are excluded here; the composite is differentiated by it.
    const auto keys = c10::impl::tls_local_dispatch_key_set();
    const c10::impl::ForceDispatchKeyGuard with_autograd(
        keys.included_, keys.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView);
    const c10::AutoGradMode with_gradients(true);
    Inputs leaves;
    for (std::size_t i = 0; i < kInputs; ++i) leaves[i] = all[i].detach().requires_grad_(true);
    const Tensor out =
        composite_skipping(inputs_of(leaves, position_scale.detach(), height, width, window, rows, first));
    auto grads = torch::autograd::grad({out}, {leaves.begin(), leaves.end()}, {grad_out.to(out.scalar_type())});
    for (Tensor& grad : grads) grad = grad.contiguous();
    return grads;
  }
  std::vector<Tensor> grads;
  // Gradients of the strided tensors in their type, the others in fp32.
  for (std::size_t i = 0; i < kInputs; ++i) {
    grads.push_back(at::empty(all[i].sizes(), i < 5 ? query.options() : query.options().dtype(at::kFloat)));
  }
  auto& p = call.params;
  const Tensor grad = grad_out.to(query.scalar_type());
  fill(p.grad_out, grad);
  fill(p.grad_query, grads[0]);
  fill(p.grad_key, grads[1]);
  fill(p.grad_value, grads[2]);
  fill(p.grad_pool_key, grads[3]);
  fill(p.grad_pool_value, grads[4]);
  float** const targets[] = {&p.grad_gates,     &p.grad_query_embedding, &p.grad_temperature, &p.grad_local_bias,
                             &p.grad_pool_bias, &p.grad_tokens,          &p.grad_token_bias};
  for (std::size_t i = 0; i < std::size(targets); ++i) *targets[i] = grads[5 + i].mutable_data_ptr<float>();
  call.backend->aggregated_backward(p);
  for (std::size_t i = 5; i < kInputs; ++i) grads[i] = grads[i].to(all[i].scalar_type());
  return grads;
}

class AggregatedAttention : public torch::autograd::Function<AggregatedAttention> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, MOH_AGGREGATED_INPUTS) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({query, key, value, pool_key, pool_value, gates, query_embedding, temperature,
                                local_bias, pool_bias, tokens, token_bias, position_scale, rows.value_or(Tensor()),
                                first.value_or(Tensor())});
    context->saved_data["height"] = height;
    context->saved_data["width"] = width;
    context->saved_data["window"] = window;
    return call_forward(MOH_AGGREGATED_LIST, position_scale, height, width, window, rows, first);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    Inputs in;
    std::copy_n(saved.begin(), kInputs, in.begin());
    auto results = call_backward(grads[0], in, saved[kInputs], context->saved_data["height"].toInt(),
                                 context->saved_data["width"].toInt(), context->saved_data["window"].toInt(),
                                 if_defined(saved[kInputs + 1]), if_defined(saved[kInputs + 2]));
    results.resize(kInputs + 6);  // position_scale, height, width, window and the lists have none
    return results;
  }
};

Tensor forward_autograd(MOH_AGGREGATED_INPUTS) {
  return AggregatedAttention::apply(query, key, value, pool_key, pool_value, gates, query_embedding, temperature,
                                    local_bias, pool_bias, tokens, token_bias, position_scale, height, width, window,
                                    rows, first);
}

Tensor forward_meta(MOH_AGGREGATED_INPUTS) {
  (void)height, (void)width, (void)window, (void)rows, (void)first;
  return at::empty_symint(query.sym_sizes(), query.options());
}

std::vector<Tensor> backward_meta(const Tensor&, MOH_AGGREGATED_INPUTS) {
  (void)height, (void)width, (void)window, (void)rows, (void)first;
  std::vector<Tensor> grads;
  for (const Tensor& input : Inputs MOH_AGGREGATED_LIST) {
    grads.push_back(at::empty_symint(input.sym_sizes(), input.options()));
  }
  return grads;
}

}  // namespace

Tensor aggregated_attention(const AggregatedInputs& in) {
  return call_forward({in.query, in.key, in.value, in.pool_key, in.pool_value, in.gates, in.query_embedding,
                       in.temperature, in.local_bias, in.pool_bias, in.tokens, in.token_bias},
                      in.position_scale, in.height, in.width, in.window, if_defined(in.rows), if_defined(in.first));
}

#define MOH_AGGREGATED_SCHEMA                                                                        \
  "Tensor query, Tensor key, Tensor value, Tensor pool_key, Tensor pool_value, Tensor gates, "       \
  "Tensor query_embedding, Tensor temperature, Tensor local_bias, Tensor pool_bias, Tensor tokens, " \
  "Tensor token_bias, Tensor position_scale, int height, int width, int window, Tensor? rows=None, " \
  "Tensor? first=None"

TORCH_LIBRARY_FRAGMENT(moh, m) {
  m.def("aggregated_attention(" MOH_AGGREGATED_SCHEMA ") -> Tensor");
  m.def("aggregated_attention_backward(Tensor grad_out, " MOH_AGGREGATED_SCHEMA ") -> Tensor[]");
}
TORCH_LIBRARY_IMPL(moh, CompositeExplicitAutograd, m) {
  m.impl("aggregated_attention", &forward_any_device);
  m.impl("aggregated_attention_backward", &backward_any_device);
}
TORCH_LIBRARY_IMPL(moh, Meta, m) {
  m.impl("aggregated_attention", &forward_meta);
  m.impl("aggregated_attention_backward", &backward_meta);
}
TORCH_LIBRARY_IMPL(moh, Autograd, m) { m.impl("aggregated_attention", &forward_autograd); }

}  // namespace moh::ops
