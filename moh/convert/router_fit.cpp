#include "moh/convert/router_fit.h"

#include <ATen/ATen.h>

#include "moh/base/error.h"

namespace moh::convert {

using at::Tensor;

namespace {

constexpr double kPenalty = 0.1, kFloor = 1e-3, kLargestStep = 9, kLowestStep = -3;
constexpr int kSteps = 3, kMoreSteps = 2;  // from nothing; from a fit that there is, where more would overfit

}  // namespace

RouterFit fit_router_to_costs(const Tensor& inputs, const Tensor& costs, const std::optional<RouterFit>& start) {
  const Tensor mean = inputs.mean(0), centred = inputs - mean;
  Tensor gram = at::matmul(centred.t(), centred).to(at::kDouble);
  gram.diagonal().add_(kPenalty * gram.diagonal().mean());
  const auto [factor, info] = at::linalg_cholesky_ex(gram);
  MOH_CHECK(info.item<int>() == 0, "[convert] the inputs of a layer's router are all the same or not finite");
  const auto regress = [&, &factor = factor](const Tensor& target) -> RouterFit {
    const Tensor target_mean = target.mean(0);
    const Tensor cross = at::matmul(centred.t(), (target - target_mean).to(inputs.scalar_type())).to(at::kDouble);
    const Tensor slope = at::cholesky_solve(cross, factor);
    return {slope.t().contiguous(), target_mean - at::matmul(mean.to(at::kDouble), slope)};
  };
  const Tensor wide = costs.to(at::kDouble);
  RouterFit fit = start ? *start : regress((wide + (kFloor * wide.mean(0)).clamp_min(1e-30)).log());
  for (int step = 0; step < (start ? kMoreSteps : kSteps); ++step) {
    const Tensor scores = at::linear(inputs, fit.weight.to(inputs.scalar_type())).to(at::kDouble) + fit.bias;
    fit = regress(scores + (wide / scores.exp()).sub(1).clamp(kLowestStep, kLargestStep));
  }
  return fit;
}

}  // namespace moh::convert
