#include "bench/reference.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <vector>

#include "moh/base/error.h"

namespace moh::bench {

using at::Tensor;

Tensor heads_of(const Tensor& tensor, std::int64_t first, std::int64_t count) {
  return tensor.detach().narrow(2, first, count).to(at::kDouble);
}

AttentionReference attention_reference(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
                                       bool causal, const Tensor& grad_out, std::int64_t kv_head) {
  constexpr std::int64_t kBlock = 256;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const std::int64_t group = query.size(2) / key.size(2), first_head = kv_head * group;
  const std::int64_t queries = query.size(1), keys = key.size(1);
  const double scale = 1.0 / std::sqrt(static_cast<double>(query.size(3)));
  const bool backward = grad_out.defined();
  const Tensor q = heads_of(query, first_head, group), g = heads_of(gates.unsqueeze(-1), first_head, group);
  const Tensor k = heads_of(key, kv_head, 1), v = heads_of(value, kv_head, 1);
  const Tensor grad = backward ? heads_of(grad_out, first_head, group) * g : Tensor();
  AttentionReference result;
  result.out = at::empty_like(q);
  if (backward) {
    result.grad_query = at::empty_like(q);
    result.grad_key = at::zeros_like(k);
    result.grad_value = at::zeros_like(v);
  }
  for (std::int64_t b = 0; b < query.size(0); ++b) {
    const Tensor k_rows = k.select(0, b).select(1, 0), v_rows = v.select(0, b).select(1, 0);  // [S, D]
    for (std::int64_t h = 0; h < group; ++h) {
      for (std::int64_t begin = 0; begin < queries; begin += kBlock) {
        const std::int64_t count = std::min(kBlock, queries - begin);
        const auto rows = [&](const Tensor& tensor) {
          return tensor.select(0, b).narrow(0, begin, count).select(1, h);
        };
        const Tensor q_rows = rows(q);
        Tensor scores = at::mm(q_rows, k_rows.t()) * scale;
        if (causal) {
          const Tensor hidden =
              at::ones({count, keys}, scores.options().dtype(at::kBool)).triu(begin + keys - queries + 1);
          scores.masked_fill_(hidden, -kInfinity);
        }
        const Tensor p = at::softmax(scores, -1).nan_to_num(0.0);  // rows that see no key
        const Tensor head_out = at::mm(p, v_rows);
        rows(result.out).copy_(head_out * rows(g));
        if (!backward) continue;
        const Tensor grad_rows = rows(grad);
        const Tensor delta = (grad_rows * head_out).sum(-1, /*keepdim=*/true);
        const Tensor grad_scores = p * (at::mm(grad_rows, v_rows.t()) - delta) * scale;
        rows(result.grad_query).copy_(at::mm(grad_scores, k_rows));
        result.grad_key.select(0, b).select(1, 0).add_(at::mm(grad_scores.t(), q_rows));
        result.grad_value.select(0, b).select(1, 0).add_(at::mm(p.t(), grad_rows));
      }
    }
  }
  return result;
}

double check_close(const Tensor& actual, const Tensor& expected, double tolerance, const std::string& what) {
  MOH_CHECK(actual.sizes() == expected.sizes(), "[bench] ", what, " must be ", expected.sizes(), ", got ",
            actual.sizes());
  if (expected.numel() == 0) return 0;
  const Tensor reference = expected.detach().to(at::kDouble).reshape({-1});
  const Tensor result = actual.detach().to(at::kDouble).reshape({-1});
  const Tensor difference = (result - reference).abs();
  const std::int64_t worst = difference.argmax().item<std::int64_t>();  // NaN counts as largest
  const double error = difference[worst].item<double>();
  const double allowed = tolerance * std::max(1.0, reference.abs().max().item<double>());
  if (error <= allowed) return error;
  std::vector<std::int64_t> place(static_cast<std::size_t>(expected.dim()));
  for (std::int64_t i = expected.dim() - 1, rest = worst; i >= 0; rest /= expected.size(i), --i) {
    place[static_cast<std::size_t>(i)] = rest % expected.size(i);
  }
  fail("[bench] ", what, " is wrong and was not timed: at ", at::IntArrayRef(place), " it is ",
       result[worst].item<double>(), ", the reference ", reference[worst].item<double>(),
       "; allowed is a difference of ", allowed);
}

double tolerance_of(at::ScalarType dtype) { return dtype == at::kBFloat16 ? 5e-2 : dtype == at::kHalf ? 1e-2 : 1e-4; }

}  // namespace moh::bench
