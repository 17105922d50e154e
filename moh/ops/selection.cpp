#include "moh/ops/selection.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "moh/base/error.h"
#include "moh/ops/kernel_tensor.h"
#include "moh/ops/parallel.h"

namespace moh::ops {
namespace {

using at::Tensor;
using std::optional;

void check_gates(const Tensor& gates) {
  MOH_CHECK(gates.dim() >= 1 && gates.size(-1) > 0, "[select_heads] gates must be [..., H], got ", gates.sizes());
  MOH_CHECK(gates.numel() <= std::numeric_limits<std::int32_t>::max(), "[select_heads] ", gates.numel(),
            " gates are too many for one call; split the batch");
}

std::tuple<Tensor, Tensor> list_rows_cpu(const Tensor& gates) {
  check_gates(gates);
  const Tensor plain = kernel_gates_of(gates);
  const std::int64_t heads = gates.size(-1);
  const Tensor rows = at::empty({gates.numel()}, at::TensorOptions(at::kInt));
  const Tensor first = at::empty({heads + 1}, at::TensorOptions(at::kLong));
  kernels::list_rows(plain.const_data_ptr<float>(), gates.numel() / heads, heads, rows.mutable_data_ptr<std::int32_t>(),
                     first.mutable_data_ptr<std::int64_t>(), torch_parallel());
  const std::int64_t used = first.const_data_ptr<std::int64_t>()[heads];
  std::fill(rows.mutable_data_ptr<std::int32_t>() + used, rows.mutable_data_ptr<std::int32_t>() + gates.numel(), 0);
  return {rows, first};
}

// By sums along the tokens: every selected gate knows its place in the lists, the others go behind their end.
std::tuple<Tensor, Tensor> list_rows_composite(const Tensor& gates) {
  check_gates(gates);
  const std::int64_t heads = gates.size(-1), count = gates.numel();
  const Tensor selected = gates.detach().ne(0).reshape({-1, heads}).t().reshape({-1}).to(at::kLong);  // head by head
  const Tensor ends = selected.cumsum(0);
  const Tensor place = at::where(selected.eq(1), ends - 1, at::full({}, count, selected.options()));
  const Tensor numbers = at::arange(count / heads, selected.options()).repeat({heads});
  const Tensor rows = at::zeros({count + 1}, selected.options()).scatter(0, place, numbers).narrow(0, 0, count);
  const Tensor first = at::cat({at::zeros({1}, selected.options()), selected.reshape({heads, -1}).sum(1).cumsum(0)});
  return {rows.to(at::kInt), first};
}

std::tuple<Tensor, Tensor> list_rows_meta(const Tensor& gates) {
  return {at::empty_symint({gates.sym_numel()}, gates.options().dtype(at::kInt)),
          at::empty_symint({gates.sym_size(-1) + 1}, gates.options().dtype(at::kLong))};
}

}  // namespace

Selection select_heads(const Tensor& gates) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("moh::list_rows", "")
                             .typed<std::tuple<Tensor, Tensor>(const Tensor&)>();
  auto [rows, first] = op.call(gates.detach());
  return {gates, rows, first};
}

double active_share(const std::vector<Selection>& selections) {
  std::vector<Tensor> counts;
  double all = 0;
  for (const Selection& each : selections) {
    counts.push_back(each.first.select(0, each.first.size(0) - 1));
    all += static_cast<double>(each.gates.numel());
  }
  return all == 0 ? 1.0 : static_cast<double>(at::stack(counts).sum().item<std::int64_t>()) / all;
}

KernelSelection::KernelSelection(const Tensor& all_gates, const optional<Tensor>& given_rows,
                                 const optional<Tensor>& given_first)
    : gates(kernel_gates_of(all_gates)) {
  const std::int64_t heads = all_gates.size(-1);
  view.num_heads = heads;
  view.num_rows = heads == 0 ? 0 : gates.numel() / heads;
  view.gates = gates.const_data_ptr<float>();
  if (!all_gates.is_cpu()) return;
  MOH_CHECK(given_rows.has_value() == given_first.has_value(),
            "[selection] rows and first come together or not at all");
  if (given_rows) {
    MOH_CHECK(given_rows->is_cpu() && given_rows->scalar_type() == at::kInt && given_rows->numel() == gates.numel() &&
                  given_rows->is_contiguous() && given_first->is_cpu() && given_first->scalar_type() == at::kLong &&
                  given_first->numel() == heads + 1 && given_first->is_contiguous(),
              "[selection] rows must be int32 [", gates.numel(), "] and first int64 [", heads + 1,
              "] of the same gates");
    rows = *given_rows;
    first = *given_first;
  } else if (heads == 0) {
    rows = at::empty({0}, at::TensorOptions(at::kInt));
    first = at::zeros({1}, at::TensorOptions(at::kLong));
  } else {
    std::tie(rows, first) = list_rows_cpu(gates);
  }
  view.rows = rows.const_data_ptr<std::int32_t>();
  view.first = first.const_data_ptr<std::int64_t>();
}

TORCH_LIBRARY_FRAGMENT(moh, m) { m.def("list_rows(Tensor gates) -> (Tensor rows, Tensor first)"); }
TORCH_LIBRARY_IMPL(moh, CPU, m) { m.impl("list_rows", &list_rows_cpu); }
TORCH_LIBRARY_IMPL(moh, CompositeExplicitAutograd, m) { m.impl("list_rows", &list_rows_composite); }
TORCH_LIBRARY_IMPL(moh, Meta, m) { m.impl("list_rows", &list_rows_meta); }

}  // namespace moh::ops
