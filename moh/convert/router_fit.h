// A router from what every head is worth: exp(r_j(x)) is what leaving choice j out is expected to cost for the input x.
//
//   r(x) = B^T x + b
//
// A Gamma regression with logarithmic link: costs spread over orders of magnitude with their mean, and one threshold on
// the logarithm of the expected cost is what spends heads best. Started from the ridge regression of log(cost + 0.001
// of the head's mean), then three steps of iterated least squares, whose weights are all one in this family:
//   z = r + (cost / exp(r) - 1), cut off at 9, is regressed on x again.
// Every regression: x and z centred, a penalty of 0.1 of the mean diagonal of X^T X, float64.
// Costs among others may be negative where their expectation is not; z - r is cut off at -3 then, and two steps begin
// at a fit that there is.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace moh::convert {

struct RouterFit {
  at::Tensor weight, bias;  // [choices, C], [choices], float64
};

// inputs [N, C], costs [N, choices]; not negative without a `start`.
RouterFit fit_router_to_costs(const at::Tensor& inputs, const at::Tensor& costs,
                              const std::optional<RouterFit>& start = std::nullopt);

}  // namespace moh::convert
