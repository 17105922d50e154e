#include "moh/ops/routing.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <torch/library.h>

#include <limits>

#include "moh/base/error.h"
#include "moh/kernels/routing.h"
#include "moh/ops/linear.h"
#include "moh/ops/parallel.h"

namespace moh::ops {
namespace {

using at::Tensor;
using std::optional;

bool is_authors_form(const std::string& form, const char* where) {
  MOH_CHECK(form == "paper" || form == "authors", "[", where, "] form must be `paper` or `authors`, got `", form, "`");
  return form == "authors";
}

void check_counts(const char* where, std::int64_t num_heads, std::int64_t shared_heads, std::int64_t top_k) {
  MOH_CHECK(num_heads > 0 && shared_heads >= 0 && shared_heads <= num_heads, "[", where,
            "] shared heads must be in 0..", num_heads, ", got ", shared_heads);
  MOH_CHECK(top_k >= 0 && top_k <= num_heads - shared_heads, "[", where, "] top_k must be in 0..",
            num_heads - shared_heads, " (heads less shared heads), got ", top_k);
  MOH_CHECK(shared_heads + top_k > 0, "[", where, "] at least one head must be active: shared heads and top_k are 0");
}

Tensor upcast(const Tensor& tensor) { return tensor.scalar_type() == at::kDouble ? tensor : tensor.to(at::kFloat); }

// The matrices that a case needs, as one product: x is read once.
class Scores {
 public:
  explicit Scores(const Tensor& x) : x_(x) {}
  void need(const optional<Tensor>& weight, const char* name, std::int64_t rows) {
    MOH_CHECK(weight.has_value(), "[route_two_stage] this combination of shared heads and top_k needs ", name, " [",
              rows, ", ", x_.size(-1), "]");
    MOH_CHECK(weight->dim() == 2 && weight->size(0) == rows && weight->size(1) == x_.size(-1), "[route_two_stage] ",
              name, " must be [", rows, ", ", x_.size(-1), "], got ", weight->sizes());
    weights_.push_back(weight->to(x_.scalar_type()));
    rows_.push_back(rows);
  }
  bool needs_gradients() const {
    bool needs = x_.requires_grad();
    for (const Tensor& weight : weights_) needs |= weight.requires_grad();
    return needs && at::GradMode::is_enabled();
  }
  // x W^T for all of them, in the order in which they were named.
  Tensor products() const {
    if (weights_.empty()) return x_.detach().narrow(-1, 0, 0);
    return moh::ops::linear(x_, weights_.size() == 1 ? weights_[0] : at::cat(weights_), std::nullopt);
  }
  // Their softmax, one by one.
  std::vector<Tensor> probabilities() const {
    if (weights_.empty()) return {};
    std::vector<Tensor> parts = products().split_with_sizes(rows_, -1);
    for (Tensor& part : parts) part = at::softmax(part, -1);
    return parts;
  }

 private:
  const Tensor& x_;
  std::vector<Tensor> weights_;
  std::vector<std::int64_t> rows_;
};

using Gates = std::tuple<Tensor, Tensor, Tensor>;  // gates, indices, probabilities

Gates empty_gates(const Tensor& products, std::int64_t shared_heads, std::int64_t num_routed, std::int64_t top_k) {
  auto sizes = products.sym_sizes().vec();
  const auto like = [&](std::int64_t last, at::ScalarType type) {
    sizes.back() = last;
    return at::empty_symint(sizes, products.options().dtype(type));
  };
  return {like(shared_heads + num_routed, at::kFloat), like(top_k, at::kLong), like(num_routed, at::kFloat)};
}

// Everything from the products on, without gradients (moh/kernels/routing.h).
Gates two_stage_gates_cpu(const Tensor& products, std::int64_t shared_heads, std::int64_t num_routed,
                          std::int64_t top_k, bool authors) {
  const std::int64_t width =
      (shared_heads > 1 ? shared_heads : 0) + num_routed + (shared_heads > 0 && num_routed > 0 ? 2 : 0);
  MOH_CHECK(shared_heads >= 0 && num_routed >= 0 && top_k >= 0 && top_k <= num_routed && products.dim() > 0 &&
                products.size(-1) == width && products.scalar_type() == at::kFloat,
            "[two_stage_gates] products must be fp32 [..., ", width, "] for ", shared_heads, " shared heads and ",
            top_k, " of ", num_routed, ", got ", products.scalar_type(), " ", products.sizes());
  const Tensor rows = products.contiguous();
  Gates result = empty_gates(products, shared_heads, num_routed, top_k);
  kernels::TwoStageParams p;
  p.rows = 1;
  for (const std::int64_t size : products.sizes().slice(0, products.dim() - 1)) p.rows *= size;
  p.shared_heads = shared_heads;
  p.num_routed = num_routed;
  p.top_k = top_k;
  p.authors = authors;
  p.products = rows.const_data_ptr<float>();
  p.gates = std::get<0>(result).mutable_data_ptr<float>();
  p.indices = std::get<1>(result).mutable_data_ptr<std::int64_t>();
  p.probabilities = std::get<2>(result).mutable_data_ptr<float>();
  p.parallel = torch_parallel();
  kernels::two_stage_gates(p);
  return result;
}

Gates two_stage_gates_meta(const Tensor& products, std::int64_t shared_heads, std::int64_t num_routed,
                           std::int64_t top_k, bool) {
  return empty_gates(products, shared_heads, num_routed, top_k);
}

Gates two_stage_gates(const Tensor& products, std::int64_t shared_heads, std::int64_t num_routed, std::int64_t top_k,
                      bool authors) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("moh::two_stage_gates", "")
                             .typed<Gates(const Tensor&, std::int64_t, std::int64_t, std::int64_t, bool)>();
  return op.call(products, shared_heads, num_routed, top_k, authors);
}

Tensor selected_mask(const Tensor& probabilities, const Tensor& indices) {
  return at::zeros(probabilities.sizes(), probabilities.options().requires_grad(false)).scatter(-1, indices, 1.0);
}

Tensor select_top_k_composite(const Tensor& scores, std::int64_t top_k) {
  // A stable sort keeps the lower index first among equals; NaN would sort as largest.
  const Tensor ordered =
      scores.detach().nan_to_num(-std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity(),
                                 -std::numeric_limits<double>::infinity());
  return std::get<1>(at::sort(ordered, /*stable=*/true, -1, /*descending=*/true)).narrow(-1, 0, top_k).contiguous();
}

Tensor select_top_k_any_device(const Tensor& scores, std::int64_t top_k) {
  MOH_CHECK(scores.dim() >= 1, "[select_top_k] scores must have at least one dimension");
  MOH_CHECK(top_k >= 0 && top_k <= scores.size(-1), "[select_top_k] top_k must be in 0..", scores.size(-1), ", got ",
            top_k);
  if (!scores.is_cpu() || scores.scalar_type() != at::kFloat) return select_top_k_composite(scores, top_k);
  const Tensor rows = scores.contiguous();
  auto sizes = scores.sizes().vec();
  sizes.back() = top_k;
  const Tensor indices = at::empty(sizes, scores.options().dtype(at::kLong));
  const std::int64_t num_routed = scores.size(-1);
  kernels::select_top_k(rows.const_data_ptr<float>(), num_routed == 0 ? 0 : rows.numel() / num_routed, num_routed,
                        top_k, indices.mutable_data_ptr<std::int64_t>(), torch_parallel());
  return indices;
}

Tensor select_top_k_meta(const Tensor& scores, std::int64_t top_k) {
  auto sizes = scores.sym_sizes().vec();
  sizes.back() = top_k;
  return at::empty_symint(sizes, scores.options().dtype(at::kLong));
}

}  // namespace

Tensor select_top_k(const Tensor& scores, std::int64_t top_k) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("moh::select_top_k", "")
                             .typed<Tensor(const Tensor&, std::int64_t)>();
  return op.call(scores.detach(), top_k);
}

Routing route_two_stage(const Tensor& input, const optional<Tensor>& wg, const optional<Tensor>& wg_1,
                        const optional<Tensor>& wg_0, std::int64_t num_heads, std::int64_t shared_heads,
                        std::int64_t top_k, const std::string& form) {
  const bool authors = is_authors_form(form, "route_two_stage");
  check_counts("route_two_stage", num_heads, shared_heads, top_k);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const Tensor x = upcast(input);
  const std::int64_t num_routed = top_k > 0 ? num_heads - shared_heads : 0;
  auto sizes = x.sizes().vec();
  sizes.back() = shared_heads;

  Scores scores(x);
  if (shared_heads > 1) scores.need(wg_1, "wg_1", shared_heads);
  if (num_routed > 0) scores.need(wg, "wg", num_routed);
  if (num_routed > 0 && shared_heads > 0) scores.need(wg_0, "wg_0", 2);
  if (x.is_cpu() && x.scalar_type() == at::kFloat && !scores.needs_gradients()) {
    auto [gates, indices, probabilities] = two_stage_gates(scores.products(), shared_heads, num_routed, top_k, authors);
    if (num_routed == 0 && shared_heads < num_heads) {  // heads that are neither shared nor routed never run
      sizes.back() = num_heads - shared_heads;
      gates = at::cat({gates, at::zeros(sizes, gates.options())}, -1);
    }
    return {gates, indices, probabilities};
  }
  const std::vector<Tensor> parts = scores.probabilities();

  Tensor shared;
  if (shared_heads > 1) {
    shared = authors ? parts.front() * static_cast<double>(shared_heads) : parts.front();
  } else {
    shared = at::ones(sizes, x.options().requires_grad(false));
  }
  if (num_routed == 0) {
    // Heads that are neither shared nor routed never run: [..., H - shared] zeros.
    sizes.back() = num_heads - shared_heads;
    const Tensor none = at::zeros(sizes, shared.options().requires_grad(false));
    sizes.back() = 0;
    const Tensor empty = at::empty(sizes, x.options().requires_grad(false));
    return {at::cat({shared, none}, -1), empty.to(at::kLong), empty};
  }

  const Tensor& probabilities = parts[shared_heads > 1 ? 1 : 0];
  const Tensor indices = select_top_k(probabilities, top_k);
  Tensor routed = probabilities * selected_mask(probabilities, indices);
  if (authors) {
    const double eps =
        x.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
    routed = routed / routed.sum(-1, /*keepdim=*/true).clamp_min(eps) * static_cast<double>(top_k);
  }
  if (shared_heads == 0) return {routed, indices, probabilities};

  const Tensor kind = authors ? parts.back() * 2.0 : parts.back();
  return {at::cat({shared * kind.narrow(-1, 0, 1), routed * kind.narrow(-1, 1, 1)}, -1), indices, probabilities};
}

Routing route_query_norm(const Tensor& query, std::int64_t shared_heads, std::int64_t top_k, const std::string& scale) {
  MOH_CHECK(scale == "deviation" || scale == "mean", "[route_query_norm] scale must be `deviation` or `mean`, got `",
            scale, "`");
  MOH_CHECK(query.dim() >= 2, "[route_query_norm] query must be [..., H, D], got ", query.sizes());
  const std::int64_t num_heads = query.size(-2);
  check_counts("route_query_norm", num_heads, shared_heads, top_k);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const std::int64_t num_routed = num_heads - shared_heads;
  auto sizes = query.sizes().vec();
  sizes.pop_back();
  sizes.back() = shared_heads;

  const Tensor norms = at::linalg_vector_norm(upcast(query.narrow(-2, shared_heads, num_routed)), 2, -1);  // [..., E]
  Tensor scores = at::zeros_like(norms);
  if (num_routed > 1) {
    const Tensor divisor =
        scale == "mean" ? norms.mean(-1, /*keepdim=*/true) : norms.std(-1, /*unbiased=*/true, /*keepdim=*/true);
    const Tensor spread = divisor > 0;
    scores = at::where(spread, norms / at::where(spread, divisor, at::ones_like(divisor)), scores);
  }
  const Tensor probabilities = at::softmax(scores, -1);
  const Tensor indices = select_top_k(scores, top_k);
  // p - p is an exact zero that carries the straight-through gradient.
  const Tensor routed = selected_mask(probabilities, indices) + (probabilities - probabilities.detach());
  const Tensor shared = at::ones(sizes, routed.options().requires_grad(false));
  return {at::cat({shared, routed}, -1), indices, probabilities};
}

double active_share(const std::vector<Tensor>& gates) {
  std::vector<Tensor> counts;
  double all = 0;
  for (const Tensor& each : gates) {
    counts.push_back(each.detach().count_nonzero());
    all += static_cast<double>(each.numel());
  }
  return all == 0 ? 1.0 : static_cast<double>(at::stack(counts).sum().item<std::int64_t>()) / all;
}

namespace {
thread_local BalanceTerms* balance_terms = nullptr;
}
BalanceTerms::BalanceTerms() : before_(balance_terms) { balance_terms = this; }
BalanceTerms::~BalanceTerms() { balance_terms = before_; }

Tensor load_balance_loss(const Tensor& probabilities, const Tensor& indices, const std::string& form) {
  const bool authors = is_authors_form(form, "load_balance_loss");
  const std::int64_t num_routed = probabilities.size(-1);
  MOH_CHECK(num_routed > 0, "[load_balance_loss] probabilities must be [..., E] with E > 0, got ",
            probabilities.sizes());
  const Tensor rows = probabilities.reshape({-1, num_routed});
  const Tensor load = selected_mask(rows.detach(), indices.reshape({-1, indices.size(-1)})).mean(0);
  const Tensor probability = rows.mean(0);
  const double scale = authors ? static_cast<double>(num_routed) : 1;
  if (balance_terms != nullptr) balance_terms->terms_.push_back({probability, load, scale});
  const Tensor loss = (probability * load).sum();
  return authors ? loss * scale : loss;
}

TORCH_LIBRARY_FRAGMENT(moh, m) {
  const auto as_tuple = [](Routing routing) {
    return std::tuple<Tensor, Tensor, Tensor>(routing.gates, routing.indices, routing.probabilities);
  };
  m.def("select_top_k(Tensor scores, int top_k) -> Tensor");
  m.def(
      "two_stage_gates(Tensor products, int shared_heads, int num_routed, int top_k, bool authors) -> (Tensor gates, "
      "Tensor indices, Tensor probabilities)");
  m.def(
      "route_two_stage(Tensor x, Tensor? wg, Tensor? wg_1, Tensor? wg_0, *, int num_heads, int shared_heads, int top_k, "
      "str form='paper') -> (Tensor gates, Tensor indices, Tensor probabilities)",
      [=](const Tensor& x, const optional<Tensor>& wg, const optional<Tensor>& wg_1, const optional<Tensor>& wg_0,
          std::int64_t num_heads, std::int64_t shared_heads, std::int64_t top_k, std::string form) {
        return as_tuple(route_two_stage(x, wg, wg_1, wg_0, num_heads, shared_heads, top_k, form));
      });
  m.def(
      "route_query_norm(Tensor query, *, int shared_heads, int top_k, str scale='deviation') -> (Tensor gates, Tensor "
      "indices, Tensor probabilities)",
      [=](const Tensor& query, std::int64_t shared_heads, std::int64_t top_k, std::string scale) {
        return as_tuple(route_query_norm(query, shared_heads, top_k, scale));
      });
  m.def("load_balance_loss(Tensor probabilities, Tensor indices, *, str form='paper') -> Tensor",
        [](const Tensor& probabilities, const Tensor& indices, std::string form) {
          return load_balance_loss(probabilities, indices, form);
        });
}
TORCH_LIBRARY_IMPL(moh, CompositeExplicitAutograd, m) { m.impl("select_top_k", &select_top_k_any_device); }
TORCH_LIBRARY_IMPL(moh, CPU, m) { m.impl("two_stage_gates", &two_stage_gates_cpu); }
TORCH_LIBRARY_IMPL(moh, Meta, m) {
  m.impl("select_top_k", &select_top_k_meta);
  m.impl("two_stage_gates", &two_stage_gates_meta);
}

}  // namespace moh::ops
