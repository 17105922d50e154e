// The attention kernels for Python through torch's stable ABI: one library for torch 2.10 and all later ones. Raw
// operators in the namespace moh_kernels; python/moh/ops.py makes torch.ops.moh.head_attention of them (checks,
// autograd, autocast, shapes).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "moh/base/error.h"
#include "moh/kernels/backend.h"
#include "moh/kernels/selection.h"

namespace {

using moh::kernels::DType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      return DType::kFloat64;
  }
}

template <class Pointer, int dimensions>
void fill(moh::kernels::Strided<Pointer, dimensions>& target, const Tensor& tensor) {
  target.data = tensor.mutable_data_ptr();
  for (int i = 0; i < dimensions; ++i) target.stride[i] = tensor.stride(i);
}

// torch's own threads.
moh::kernels::Parallel torch_threads() {
  moh::kernels::Parallel parallel;
  parallel.num_threads = static_cast<int>(torch::stable::get_num_threads());
  parallel.run = [](int num_workers, moh::kernels::Parallel::Body body, void* context) {
    torch::stable::parallel_for(0, num_workers, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
    });
  };
  return parallel;
}

// Which keys a query sees and what becomes of its scores: moh/ops/head_attention.h.
struct Variant {
  bool causal;
  double scale;
  std::int64_t window;
  double soft_cap;
  std::optional<Tensor> bias, sink;  // expanded to [B, H, T, S]; fp32 [H]
};

// A call of the kernels, with what its pointers point to.
struct Call {
  moh::kernels::HeadAttentionParams params;
  const moh::kernels::Backend* backend = nullptr;

  // gates [B, T, H] contiguous fp32. Sequence b is batch b.
  Call(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates, const Variant& variant,
       bool backward) {
    const std::int64_t batch = query.size(0), tokens = query.size(1), heads = query.size(2);
    auto& p = params;
    p.parallel = torch_threads();
    rows_.resize(gates.numel());
    first_.resize(heads + 1);
    p.selection = {batch * tokens, heads, static_cast<const float*>(gates.const_data_ptr()), rows_.data(),
                   first_.data()};
    moh::kernels::list_rows(p.selection.gates, batch * tokens, heads, rows_.data(), first_.data(), p.parallel);
    for (std::int64_t b = 0; b < batch; ++b) {
      sequences_.push_back({.batch = b, .queries = tokens, .keys = key.size(1)});
    }
    list_sequences();
    p.rows_per_batch = tokens;
    p.num_heads = heads;
    p.num_kv_heads = key.size(2);
    p.head_dim = query.size(3);
    p.scale = static_cast<float>(variant.scale);
    p.dtype = dtype_of(query);
    fill(p.query, query);
    fill(p.key, key);
    fill(p.value, value);
    p.variant.causal = variant.causal;
    p.variant.window = variant.window;
    p.variant.soft_cap = static_cast<float>(variant.soft_cap);
    if (variant.sink) p.variant.sink = static_cast<const float*>(variant.sink->const_data_ptr());
    if (variant.bias) {
      fill(p.variant.bias, *variant.bias);
      p.variant.bias_dtype = dtype_of(*variant.bias);
    }
    choose(traits(query, backward));
  }

  // One batch whose rows are divided among sequences [N, 3], key and value being a pool of pages.
  Call(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates, const Variant& variant,
       const Tensor& sequences, const Tensor& pages)
      : Call(query, key, value, gates, variant, /*backward=*/false) {
    const auto* const numbers = static_cast<const std::int64_t*>(sequences.const_data_ptr());
    const auto* const table = static_cast<const std::int32_t*>(pages.const_data_ptr());
    sequences_.clear();
    const std::int64_t page = key.size(1);
    for (std::int64_t n = 0; n < sequences.size(0); ++n) {
      const moh::kernels::Sequence sequence = {.first_query = numbers[3 * n],
                                               .queries = numbers[3 * n + 1],
                                               .keys = numbers[3 * n + 2],
                                               .pages = table + n * pages.size(1)};
      MOH_CHECK(sequence.first_query >= 0 && sequence.queries >= 0 &&
                    sequence.queries <= query.size(1) - sequence.first_query,
                "[head_attention_paged] sequence ", n, " has ", sequence.queries, " rows from ", sequence.first_query,
                " of ", query.size(1));
      MOH_CHECK(sequence.keys >= 0 && sequence.keys <= pages.size(1) * page, "[head_attention_paged] sequence ", n,
                " has ", sequence.keys, " keys in ", pages.size(1), " pages of ", page);
      for (std::int64_t i = 0; i * page < sequence.keys; ++i) {
        MOH_CHECK(sequence.pages[i] >= 0 && sequence.pages[i] < key.size(0), "[head_attention_paged] page ",
                  sequence.pages[i], " of sequence ", n, " is outside the pool of ", key.size(0));
      }
      sequences_.push_back(sequence);
    }
    list_sequences();
    params.page_size = key.size(1);
    choose(traits(query, /*backward=*/false));
  }

  static moh::kernels::CallTraits traits(const Tensor& query, bool backward) {
    return {.dtype = dtype_of(query), .on_cpu = query.is_cpu(), .head_dim = query.size(3), .backward = backward};
  }

 private:
  void list_sequences() {
    params.sequences = sequences_.data();
    params.num_sequences = static_cast<std::int64_t>(sequences_.size());
  }
  void choose(const moh::kernels::CallTraits& traits) {
    std::string reason;
    backend = moh::kernels::choose_backend(traits, &reason);
    if (backend == nullptr) moh::fail("[head_attention] no kernel: ", reason);
  }

  std::vector<std::int32_t> rows_;
  std::vector<std::int64_t> first_;
  std::vector<moh::kernels::Sequence> sequences_;
};

Tensor like(const Tensor& tensor) { return torch::stable::empty(tensor.sizes(), tensor.scalar_type()); }

// Why no kernel computes such a query; empty: one does.
std::string attention_reason(const Tensor& query, bool backward) {
  if (!query.is_cpu()) return "this package has kernels for the CPU only";
  std::string reason;
  const bool found = moh::kernels::choose_backend(Call::traits(query, backward), &reason) != nullptr;
  return found ? "" : reason;
}

std::tuple<Tensor, Tensor> attention_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                             const Tensor& gates, const std::optional<Tensor>& bias, bool causal,
                                             double scale, std::int64_t window, double soft_cap,
                                             const std::optional<Tensor>& sink) {
  Call call(query, key, value, gates, {causal, scale, window, soft_cap, bias, sink}, /*backward=*/false);
  const Tensor out = like(query), lse = like(gates);
  fill(call.params.out, out);
  call.params.lse = static_cast<float*>(lse.mutable_data_ptr());
  call.backend->attention_forward(call.params);
  return {out, lse};
}

// query [R, H, D], key and value [P, page, Hkv, D] of any strides, see moh/ops/head_attention.h; out is zero
// beforehand.
void attention_paged(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
                     const Tensor& sequences, const Tensor& pages, bool causal, double scale, std::int64_t window,
                     double soft_cap, const std::optional<Tensor>& sink, Tensor out) {
  Call call(query, key, value, gates, {causal, scale, window, soft_cap, std::nullopt, sink}, sequences, pages);
  const Tensor lse = like(gates);
  fill(call.params.out, out);
  call.params.lse = static_cast<float*>(lse.mutable_data_ptr());
  call.backend->attention_forward(call.params);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
    const std::optional<Tensor>& bias, const Tensor& out, const Tensor& lse, bool causal, double scale,
    bool bias_gradient, std::int64_t window, double soft_cap, const std::optional<Tensor>& sink) {
  Call call(query, key, value, gates, {causal, scale, window, soft_cap, bias, sink}, /*backward=*/true);
  const Tensor grad_query = like(query), grad_key = like(key), grad_value = like(value), grad_gates = like(gates);
  const std::vector<std::int64_t> whole = {query.size(0), query.size(2), query.size(1), key.size(1)};
  const Tensor grad_bias =
      torch::stable::empty(bias_gradient ? whole : std::vector<std::int64_t>{0}, ScalarType::Float);
  auto& p = call.params;
  fill(p.out_saved, out);
  fill(p.grad_out, grad_out);
  fill(p.grad_query, grad_query);
  fill(p.grad_key, grad_key);
  fill(p.grad_value, grad_value);
  p.lse = static_cast<float*>(lse.mutable_data_ptr());
  p.grad_gates = static_cast<float*>(grad_gates.mutable_data_ptr());
  if (bias_gradient) {
    p.grad_bias.data = static_cast<float*>(grad_bias.mutable_data_ptr());
    for (int i = 0; i < 3; ++i) p.grad_bias.stride[i] = grad_bias.stride(i);
  }
  call.backend->attention_backward(p);
  return {grad_query, grad_key, grad_value, grad_gates, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY(moh_kernels, m) {
  m.def("attention_reason(Tensor query, bool backward) -> str");
  m.def(
      "attention_forward(Tensor query, Tensor key, Tensor value, Tensor gates, Tensor? bias, bool causal, float scale, "
      "int window, float soft_cap, Tensor? sink) -> (Tensor out, Tensor lse)");
  m.def(
      "attention_paged(Tensor query, Tensor key, Tensor value, Tensor gates, Tensor sequences, Tensor pages, bool causal, "
      "float scale, int window, float soft_cap, Tensor? sink, Tensor(a!) out) -> ()");
  m.def(
      "attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor gates, Tensor? bias, Tensor "
      "out, Tensor lse, bool causal, float scale, bool bias_gradient, int window, float soft_cap, Tensor? sink) -> "
      "(Tensor grad_query, Tensor grad_key, Tensor "
      "grad_value, Tensor grad_gates, Tensor grad_bias)");
}

STABLE_TORCH_LIBRARY_IMPL(moh_kernels, CompositeExplicitAutograd, m) {
  m.impl("attention_reason", TORCH_BOX(&attention_reason));
}

STABLE_TORCH_LIBRARY_IMPL(moh_kernels, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_paged", TORCH_BOX(&attention_paged));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}
