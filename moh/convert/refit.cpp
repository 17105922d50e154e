#include "moh/convert/refit.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace moh::convert {

using at::Tensor;

namespace {

constexpr double kProjectionPenalty = 2, kMeanPenalty = 0.001;
constexpr std::int64_t kRows = 1024;  // that are laid out at a time

}  // namespace

OutputWeights mean_outputs(const Tensor& heads, const Tensor& gates, const Tensor& projection) {
  const std::int64_t choices = heads.size(1), width = heads.size(2);
  const Tensor left_out = 1 - gates;  // [N, choices]
  const Tensor sums = at::einsum("ncw,nc->cw", {heads, left_out}).to(at::kDouble);
  const Tensor counts = left_out.sum(0, /*keepdim=*/false, at::kDouble);
  const Tensor everywhere = heads.mean(0, /*keepdim=*/false, at::kDouble);  // of a choice that is never left out
  const Tensor means = at::where(counts.unsqueeze(1) > 0, sums / counts.unsqueeze(1).clamp_min(1), everywhere);
  const Tensor by_choice = projection.to(at::kDouble).reshape({-1, choices, width});
  return {projection, at::einsum("kcw,cw->kc", {by_choice, means}), at::zeros({projection.size(0)}, means.options())};
}

OutputWeights refit_outputs(const Tensor& heads, const Tensor& gates, const Tensor& projection, bool with_means) {
  const std::int64_t rows = heads.size(0), choices = heads.size(1), inputs = choices * heads.size(2);
  const std::int64_t extra = with_means ? choices + 1 : 0, outputs = projection.size(0);
  Ridge ridge(inputs + extra, outputs);
  for (std::int64_t first = 0; first < rows; first += kRows) {
    const std::int64_t count = std::min(kRows, rows - first);
    const Tensor some = heads.narrow(0, first, count), gate = gates.narrow(0, first, count);
    Tensor phi = (some * gate.unsqueeze(-1)).flatten(1);
    if (with_means) phi = at::cat({phi, 1 - gate, at::ones({count, 1}, phi.options())}, 1);
    ridge.add(phi, at::matmul(some.flatten(1), projection.t()));
  }
  const Tensor squares = ridge.mean_squares() * ridge.rows();
  const at::TensorOptions options(at::kDouble);
  const double penalty_share = kProjectionPenalty * static_cast<double>(inputs) / static_cast<double>(rows);
  const Tensor heads_penalty = at::full({inputs}, 1, options) * (penalty_share * squares.narrow(0, 0, inputs).mean());
  if (!with_means) return {ridge.solve(heads_penalty, projection.t().to(at::kDouble)).t().contiguous(), {}, {}};

  const OutputWeights start = mean_outputs(heads, gates, projection);
  const Tensor prior = at::cat({projection.t().to(at::kDouble), start.mean.t(), start.mean_bias.unsqueeze(0)});
  const Tensor penalty = at::cat({heads_penalty, at::full({extra}, kMeanPenalty * static_cast<double>(rows), options)});
  const Tensor solved = ridge.solve(penalty, prior);
  return {solved.narrow(0, 0, inputs).t().contiguous(), solved.narrow(0, inputs, choices).t().contiguous(),
          solved[inputs + choices].contiguous()};
}

}  // namespace moh::convert
