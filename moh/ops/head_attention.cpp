#include "moh/ops/head_attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <limits>

#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/kernels/backend.h"
#include "moh/ops/head_attention_forms.h"
#include "moh/ops/kernel_tensor.h"
#include "moh/ops/parallel.h"

namespace moh::ops {
namespace {

using at::Tensor;
using std::optional;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A bool mask, true where a key may be seen, as a bias.
optional<Tensor> as_bias(const optional<Tensor>& bias) {
  if (!bias || bias->scalar_type() != at::kBool) return bias;
  return at::zeros(bias->sizes(), bias->options().dtype(at::kFloat)).masked_fill(bias->logical_not(), -kInfinity);
}

// One call of the kernels, with what its pointers point to.
struct KernelCall {
  KernelSelection selection;
  Tensor query, key, value, bias, sink, device_sequences;  // as the kernels read them; undefined: none
  std::vector<kernels::Sequence> sequences;
  kernels::HeadAttentionParams params;
  const kernels::Backend* backend = nullptr;  // nullptr: the composite form, because of
  std::string reason;

  // Sequence b is batch b.
  KernelCall(const Tensor& all_query, const Tensor& key, const Tensor& value, const Tensor& gates,
             const optional<Tensor>& rows, const optional<Tensor>& first, const AttentionVariant& variant)
      : KernelCall(all_query, gates, rows, first, variant) {
    for (std::int64_t b = 0; b < query.size(0); ++b) {
      sequences.push_back({.batch = b, .queries = query.size(1), .keys = key.size(1)});
    }
    params.rows_per_batch = query.size(1);
    fill(params.query, query);
    describe(key, value);
    if (variant.bias) {
      const auto type = variant.bias->scalar_type();
      // Already of four dimensions (stride 0 where it broadcasts), and in its own type.
      bias = variant.bias->detach()
                 .to(query.is_cuda() || (type == at::kDouble && query.scalar_type() != at::kDouble) ? at::kFloat : type)
                 .expand({query.size(0), query.size(2), query.size(1), key.size(1)});
      fill(params.variant.bias, bias);
      params.variant.bias_dtype = kernel_dtype(bias.scalar_type());
    }
  }

  // Sequences in pages, see head_attention_paged; query [R, H, D].
  KernelCall(const Tensor& all_query, const Tensor& key, const Tensor& value, const Tensor& gates,
             const optional<Tensor>& rows, const optional<Tensor>& first, const Tensor& list, const Tensor& pages,
             const AttentionVariant& variant)
      : KernelCall(all_query, gates, rows, first, variant) {
    params.rows_per_batch = query.size(0);
    params.page_size = key.size(1);
    params.query.data = query.const_data_ptr();
    for (int i = 0; i < 3; ++i) params.query.stride[i + 1] = query.stride(i);
    describe(key, value);
    if (query.is_cuda()) {
      describe_on_device(list, pages);
      return;
    }
    const auto* const numbers = list.const_data_ptr<std::int64_t>();
    const auto* const table = pages.const_data_ptr<std::int32_t>();
    for (std::int64_t n = 0; n < list.size(0); ++n) {
      sequences.push_back({.first_query = numbers[3 * n],
                           .queries = numbers[3 * n + 1],
                           .keys = numbers[3 * n + 2],
                           .pages = table + n * pages.size(1)});
    }
    params.sequences = sequences.data();
    params.num_sequences = list.size(0);
  }

  void choose(bool backward) {
    backend = kernels::choose_backend({.dtype = params.dtype,
                                       .on_cpu = params.on_cpu,
                                       .head_dim = params.head_dim,
                                       .backward = backward,
                                       .attention = &params},
                                      &reason);
  }

 private:
  KernelCall(const Tensor& all_query, const Tensor& gates, const optional<Tensor>& rows, const optional<Tensor>& first,
             const AttentionVariant& variant)
      : selection(gates, rows, first), query(kernel_layout_of(all_query)) {
    params.selection = selection.view;
    params.num_heads = query.size(-2);
    params.head_dim = query.size(-1);
    params.variant.causal = variant.causal;
    params.variant.window = variant.window;
    params.variant.soft_cap = static_cast<float>(variant.soft_cap);
    if (variant.sink) {
      sink = kernel_gates_of(*variant.sink);
      params.variant.sink = sink.const_data_ptr<float>();
    }
    params.scale = static_cast<float>(scale_of(variant, query.dim() == 3 ? query.unsqueeze(0) : query));
    params.dtype = kernel_dtype(query.scalar_type());
    params.on_cpu = query.is_cpu();
    params.stream = current_stream(query);
    params.parallel = torch_parallel();
  }
  void describe(const Tensor& all_key, const Tensor& all_value) {
    key = kernel_layout_of(all_key);
    value = kernel_layout_of(all_value);
    params.sequences = sequences.data();
    params.num_sequences = static_cast<std::int64_t>(sequences.size());
    params.num_kv_heads = key.size(2);
    fill(params.key, key);
    fill(params.value, value);
  }
  // What `list` holds stays on the GPU, where kernels read it: nothing waits.
  void describe_on_device(const Tensor& list, const Tensor& pages) {
    const Tensor none = at::zeros({list.size(0)}, list.options());
    const Tensor place = at::arange(list.size(0), list.options()) * pages.size(1);
    device_sequences = at::stack({none, list.select(1, 0), list.select(1, 1), list.select(1, 2), none, place}, 1);
    params.num_sequences = list.size(0);
    params.device_sequences = {.table = device_sequences.const_data_ptr<std::int64_t>(),
                               .pages = pages.const_data_ptr<std::int32_t>(),
                               .max_queries = query.size(0),
                               .max_keys = pages.size(1) * key.size(1)};
  }
};

// Whether the table of backends could have a row for tensors that live there; elsewhere there may be no pointers at
// all.
bool has_kernels(const Tensor& tensor) { return tensor.is_cpu() || tensor.is_cuda(); }

// Nothing falls back in silence; fp64 is meant to take this way.
void tell_composite(const Tensor& query, const std::string& reason) {
  if (query.scalar_type() == at::kDouble) return;
  TORCH_WARN_ONCE("moh::head_attention runs its composite form: ", reason);
}

#define MOH_VARIANT_ARGUMENTS                                                                    \
  const optional<Tensor>&bias, bool causal, optional<double> scale, const optional<Tensor>&rows, \
      const optional<Tensor>&first, std::int64_t window, double soft_cap, const optional<Tensor>&sink

std::tuple<Tensor, Tensor> head_attention_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                                  const Tensor& gates, MOH_VARIANT_ARGUMENTS) {
  const AttentionVariant variant = {causal, window, soft_cap, as_bias(bias), sink, scale};
  check_attention(query, key, value, gates, variant);
  if (has_kernels(query)) {
    const auto device = on_device_of(query);
    KernelCall call(query, key, value, gates, rows, first, variant);
    call.choose(/*backward=*/false);
    if (call.backend != nullptr) {
      const Tensor out = at::empty(query.sizes(), query.options());
      const Tensor lse = at::empty(gates.sizes(), query.options().dtype(at::kFloat));
      fill(call.params.out, out);
      call.params.lse = lse.mutable_data_ptr<float>();
      call.backend->attention_forward(call.params);
      return {out, lse};
    }
    tell_composite(query, call.reason);
  }
  return composite_forward(query, key, value, gates, variant);
}

// The last result is the gradient of the bias expanded to [B, H, T, S]; empty unless asked for.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> head_attention_backward(
    const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
    const optional<Tensor>& bias, const Tensor& out, const Tensor& lse, bool causal, optional<double> scale,
    bool bias_gradient, const optional<Tensor>& rows, const optional<Tensor>& first, std::int64_t window,
    double soft_cap, const optional<Tensor>& sink) {
  const AttentionVariant variant = {causal, window, soft_cap, as_bias(bias), sink, scale};
  check_attention(query, key, value, gates, variant);
  const auto empty_bias_gradient = [&] { return at::empty({0}, lse.options()); };
  if (has_kernels(query)) {
    const auto device = on_device_of(query);
    KernelCall call(query, key, value, gates, rows, first, variant);
    call.choose(/*backward=*/true);
    if (call.backend != nullptr) {
      auto& params = call.params;
      const Tensor grad_query = at::empty(query.sizes(), query.options());
      const Tensor grad_key = at::empty(key.sizes(), key.options());
      const Tensor grad_value = at::empty(value.sizes(), value.options());
      const Tensor grad_gates = at::empty(gates.sizes(), lse.options());
      const Tensor grad_bias =
          bias_gradient ? at::empty({query.size(0), query.size(2), query.size(1), key.size(1)}, lse.options())
                        : empty_bias_gradient();
      const Tensor grad = kernel_layout_of(grad_out.to(query.scalar_type()));
      const Tensor lse_rows = lse.contiguous();
      fill(params.out_saved, out);
      fill(params.grad_out, grad);
      fill(params.grad_query, grad_query);
      fill(params.grad_key, grad_key);
      fill(params.grad_value, grad_value);
      params.lse = lse_rows.mutable_data_ptr<float>();
      params.grad_gates = grad_gates.mutable_data_ptr<float>();
      if (bias_gradient) {
        params.grad_bias.data = grad_bias.mutable_data_ptr<float>();
        for (int i = 0; i < 3; ++i) params.grad_bias.stride[i] = grad_bias.stride(i);
      }
      call.backend->attention_backward(params);
      return {grad_query, grad_key, grad_value, grad_gates, grad_bias};
    }
  }
  auto grads = composite_backward(grad_out, query, key, value, gates, lse, variant);
  std::get<4>(grads) = bias_gradient ? std::get<4>(grads).contiguous() : empty_bias_gradient();
  return grads;
}

// Shapes only, for FakeTensor and torch.compile: sizes may be symbolic.
at::TensorOptions statistics_options(const Tensor& query) {
  return query.options().dtype(query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

std::tuple<Tensor, Tensor> head_attention_forward_meta(const Tensor& query, const Tensor& key, const Tensor&,
                                                       const Tensor& gates, const optional<Tensor>&, bool,
                                                       optional<double>, const optional<Tensor>&,
                                                       const optional<Tensor>&, std::int64_t, double,
                                                       const optional<Tensor>&) {
  MOH_CHECK(query.dim() == 4 && key.dim() == 4, "[head_attention] query and key must have 4 dimensions, got ",
            query.dim(), " and ", key.dim());
  return {at::empty_symint(query.sym_sizes(), query.options()),
          at::empty_symint(gates.sym_sizes(), statistics_options(query))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> head_attention_backward_meta(
    const Tensor&, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
    const optional<Tensor>&, const Tensor&, const Tensor&, bool, optional<double>, bool bias_gradient,
    const optional<Tensor>&, const optional<Tensor>&, std::int64_t, double, const optional<Tensor>&) {
  const auto statistics = statistics_options(query);
  return {at::empty_symint(query.sym_sizes(), query.options()), at::empty_symint(key.sym_sizes(), key.options()),
          at::empty_symint(value.sym_sizes(), value.options()), at::empty_symint(gates.sym_sizes(), statistics),
          bias_gradient
              ? at::empty_symint({query.sym_size(0), query.sym_size(2), query.sym_size(1), key.sym_size(1)}, statistics)
              : at::empty({0}, statistics)};
}

using ForwardOp = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                             const optional<Tensor>&, bool, optional<double>, const optional<Tensor>&,
                                             const optional<Tensor>&, std::int64_t, double, const optional<Tensor>&);
using BackwardOp = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                                      const Tensor&, const Tensor&,
                                                                      const optional<Tensor>&, const Tensor&,
                                                                      const Tensor&, bool, optional<double>, bool,
                                                                      const optional<Tensor>&, const optional<Tensor>&,
                                                                      std::int64_t, double, const optional<Tensor>&);

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
                                                MOH_VARIANT_ARGUMENTS) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, lse] =
        forward_op().call(query, key, value, gates, bias, causal, scale, rows, first, window, soft_cap, sink);
    context->save_for_backward({query, key, value, gates, bias.value_or(Tensor()), out, lse, rows.value_or(Tensor()),
                                first.value_or(Tensor()), sink.value_or(Tensor())});
    context->saved_data["causal"] = causal;
    context->saved_data["scale"] = scale;
    context->saved_data["window"] = window;
    context->saved_data["soft_cap"] = soft_cap;
    context->mark_non_differentiable({lse});
    return {out, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    check_interrupt();
    const auto saved = context->get_saved_variables();
    const Tensor &gates = saved[3], &bias = saved[4], &out = saved[5], &lse = saved[6], &sink = saved[9];
    const bool bias_gradient = bias.defined() && bias.requires_grad();
    auto [grad_query, grad_key, grad_value, grad_gates, grad_bias] = backward_op().call(
        grads[0], saved[0], saved[1], saved[2], gates, if_defined(bias), out, lse,
        context->saved_data["causal"].toBool(), context->saved_data["scale"].toOptional<double>(), bias_gradient,
        if_defined(saved[7]), if_defined(saved[8]), context->saved_data["window"].toInt(),
        context->saved_data["soft_cap"].toDouble(), if_defined(sink));
    if (bias_gradient) {
      grad_bias = at::sum_to(grad_bias, bias.sym_sizes()).to(bias.scalar_type());
    }
    Tensor grad_sink;
    if (sink.defined() && sink.requires_grad()) {
      // What a row gives its sink it takes from its output.
      const Tensor share = at::exp(sink.to(lse.scalar_type()) - lse).masked_fill(lse.eq(-kInfinity), 0);
      const Tensor of_row = (grads[0].to(lse.scalar_type()) * out.to(lse.scalar_type())).sum(-1);
      grad_sink = -(share * of_row).flatten(0, 1).sum(0).to(sink.scalar_type());
    }
    const Tensor none;
    return {grad_query,
            grad_key,
            grad_value,
            grad_gates.to(gates.scalar_type()),
            bias_gradient ? grad_bias : none,
            none,
            none,
            none,
            none,
            none,
            none,
            grad_sink};
  }
};

std::tuple<Tensor, Tensor> head_attention_forward_autograd(const Tensor& query, const Tensor& key, const Tensor& value,
                                                           const Tensor& gates, MOH_VARIANT_ARGUMENTS) {
  auto results =
      HeadAttentionFunction::apply(query, key, value, gates, bias, causal, scale, rows, first, window, soft_cap, sink);
  return {results[0], results[1]};
}

void check_paged(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
                 const Tensor& sequences, const Tensor& pages, const AttentionVariant& variant) {
  const char* const where = "[head_attention_paged] ";
  MOH_CHECK(query.dim() == 3 && key.dim() == 4 && key.sizes() == value.sizes(), where,
            "query must be [R, H, D], key and value [P, page, Hkv, D], got ", query.sizes(), ", ", key.sizes(), " and ",
            value.sizes());
  const at::Device device = query.device();
  MOH_CHECK((query.is_cpu() || query.is_cuda()) && key.device() == device && value.device() == device &&
                gates.device() == device && sequences.device() == device && pages.device() == device,
            where, "tensors must be on the CPU, or all on one CUDA device");
  MOH_CHECK(!variant.bias, where, "takes no bias");
  check_attention(query.unsqueeze(0), key.narrow(0, 0, 0).reshape({1, 0, key.size(2), key.size(3)}),
                  value.narrow(0, 0, 0).reshape({1, 0, key.size(2), key.size(3)}), gates.unsqueeze(0), variant);
  MOH_CHECK(key.size(1) > 0, where, "a page must hold a key");
  MOH_CHECK(sequences.dim() == 2 && sequences.size(1) == 3 && sequences.scalar_type() == at::kLong &&
                sequences.is_contiguous(),
            where, "sequences must be contiguous int64 [N, 3], got ", sequences.scalar_type(), " ", sequences.sizes());
  MOH_CHECK(pages.dim() == 2 && pages.size(0) == sequences.size(0) && pages.scalar_type() == at::kInt &&
                pages.is_contiguous(),
            where, "pages must be contiguous int32 [N, pages], N = ", sequences.size(0), ", got ", pages.scalar_type(),
            " ", pages.sizes());
  if (!query.is_cpu()) return;  // looking at the contents would wait for the device
  const auto* const numbers = sequences.const_data_ptr<std::int64_t>();
  const auto* const table = pages.const_data_ptr<std::int32_t>();
  for (std::int64_t n = 0; n < sequences.size(0); ++n) {
    const std::int64_t first = numbers[3 * n], rows = numbers[3 * n + 1], keys = numbers[3 * n + 2];
    MOH_CHECK(first >= 0 && rows >= 0 && rows <= query.size(0) - first, where, "sequence ", n, " has rows ", first,
              " to ", first + rows, " of ", query.size(0));
    MOH_CHECK(keys >= 0 && keys <= pages.size(1) * key.size(1), where, "sequence ", n, " has ", keys, " keys in ",
              pages.size(1), " pages of ", key.size(1));
    for (std::int64_t i = 0; i * key.size(1) < keys; ++i) {
      const std::int32_t page = table[n * pages.size(1) + i];
      MOH_CHECK(page >= 0 && page < key.size(0), where, "page ", page, " of sequence ", n, " is outside the pool of ",
                key.size(0));
    }
  }
}

Tensor paged(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates, const Tensor& sequences,
             const Tensor& pages, const optional<Tensor>& rows, const optional<Tensor>& first,
             const AttentionVariant& variant) {
  check_paged(query, key, value, gates, sequences, pages, variant);
  const auto device = on_device_of(query);
  const Tensor out = at::zeros(query.sizes(), query.options());
  KernelCall call(query, key, value, gates, rows, first, sequences, pages, variant);
  call.choose(/*backward=*/false);
  if (call.backend != nullptr) {
    const Tensor lse = at::empty(gates.sizes(), query.options().dtype(at::kFloat));
    call.params.out.data = out.mutable_data_ptr();
    for (int i = 0; i < 3; ++i) call.params.out.stride[i + 1] = out.stride(i);
    call.params.lse = lse.mutable_data_ptr<float>();
    call.backend->attention_forward(call.params);
    return out;
  }
  MOH_CHECK(query.is_cpu(), "[head_attention_paged] no kernel for a GPU: ", call.reason);
  tell_composite(query, call.reason);
  for (std::size_t n = 0; n < call.sequences.size(); ++n) {
    const kernels::Sequence& sequence = call.sequences[n];
    const Tensor table = pages.select(0, static_cast<std::int64_t>(n));
    const auto keys_of = [&](const Tensor& pool) {
      const std::int64_t used = (sequence.keys + pool.size(1) - 1) / pool.size(1);
      return pool.index_select(0, table.narrow(0, 0, used)).flatten(0, 1).narrow(0, 0, sequence.keys).unsqueeze(0);
    };
    const auto own = [&](const Tensor& tensor) {
      return tensor.narrow(0, sequence.first_query, sequence.queries).unsqueeze(0);
    };
    own(out).copy_(std::get<0>(composite_forward(own(query), keys_of(key), keys_of(value), own(gates), variant)));
  }
  return out;
}

}  // namespace

Tensor head_attention(const Tensor& query, const Tensor& key, const Tensor& value, const Selection& selection,
                      const AttentionVariant& variant) {
  return std::get<0>(forward_op().call(query, key, value, selection.gates, as_bias(variant.bias), variant.causal,
                                       variant.scale, if_defined(selection.rows), if_defined(selection.first),
                                       variant.window, variant.soft_cap, variant.sink));
}

Tensor head_attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
                      const optional<Tensor>& bias, bool causal, optional<double> scale) {
  return head_attention(query, key, value, Selection{gates, {}, {}}, {.causal = causal, .bias = bias, .scale = scale});
}

Tensor head_attention_paged(const Tensor& query, const Tensor& key, const Tensor& value, const Selection& selection,
                            const Tensor& sequences, const Tensor& pages, const AttentionVariant& variant) {
  return paged(query, key, value, selection.gates, sequences, pages, if_defined(selection.rows),
               if_defined(selection.first), variant);
}

TORCH_LIBRARY_FRAGMENT(moh, m) {
  m.def(
      "head_attention(Tensor query, Tensor key, Tensor value, Tensor gates, *, Tensor? bias=None, bool causal=False, "
      "float? scale=None, int window=0, float soft_cap=0.0, Tensor? sink=None) -> Tensor",
      [](const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates, const optional<Tensor>& bias,
         bool causal, optional<double> scale, std::int64_t window, double soft_cap, const optional<Tensor>& sink) {
        return head_attention(query, key, value, Selection{gates, {}, {}},
                              {causal, window, soft_cap, bias, sink, scale});
      });
  m.def(
      "head_attention_forward(Tensor query, Tensor key, Tensor value, Tensor gates, Tensor? bias, bool causal, "
      "float? scale, Tensor? rows=None, Tensor? first=None, int window=0, float soft_cap=0.0, Tensor? sink=None) -> "
      "(Tensor out, Tensor lse)");
  m.def(
      "head_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor gates, Tensor? bias, "
      "Tensor out, Tensor lse, bool causal, float? scale, bool bias_gradient, Tensor? rows=None, Tensor? first=None, "
      "int window=0, float soft_cap=0.0, Tensor? sink=None) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, "
      "Tensor grad_gates, Tensor grad_bias)");
  m.def(
      "head_attention_paged(Tensor query, Tensor key, Tensor value, Tensor gates, Tensor sequences, Tensor pages, *, "
      "Tensor? rows=None, Tensor? first=None, bool causal=True, int window=0, float soft_cap=0.0, Tensor? sink=None, "
      "float? scale=None) -> Tensor");
}
TORCH_LIBRARY_IMPL(moh, CompositeExplicitAutograd, m) {
  m.impl("head_attention_forward", &head_attention_forward);
  m.impl("head_attention_backward", &head_attention_backward);
  m.impl("head_attention_paged",
         [](const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates, const Tensor& sequences,
            const Tensor& pages, const optional<Tensor>& rows, const optional<Tensor>& first, bool causal,
            std::int64_t window, double soft_cap, const optional<Tensor>& sink, optional<double> scale) {
           return paged(query, key, value, gates, sequences, pages, rows, first,
                        {causal, window, soft_cap, std::nullopt, sink, scale});
         });
}
TORCH_LIBRARY_IMPL(moh, Meta, m) {
  m.impl("head_attention_forward", &head_attention_forward_meta);
  m.impl("head_attention_backward", &head_attention_backward_meta);
  m.impl("head_attention_paged",
         [](const Tensor& query, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
            const optional<Tensor>&, const optional<Tensor>&, bool, std::int64_t, double, const optional<Tensor>&,
            optional<double>) { return at::empty_symint(query.sym_sizes(), query.options()); });
}
TORCH_LIBRARY_IMPL(moh, Autograd, m) { m.impl("head_attention_forward", &head_attention_forward_autograd); }

}  // namespace moh::ops
