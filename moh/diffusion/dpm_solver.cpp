#include "moh/diffusion/dpm_solver.h"

#include <ATen/ATen.h>

#include <cmath>

#include "moh/base/error.h"
#include "moh/diffusion/gaussian.h"

namespace moh::diffusion {

using at::Tensor;

Tensor DpmSolver::step(const Tensor& output, const Tensor& x, std::int64_t t, bool clip) {
  MOH_CHECK(t >= 0 && t < schedule_.steps(), "[dpm_solver] step must be in 0..", schedule_.steps() - 1, ", got ", t);
  const Tensor steps = at::full({x.size(0)}, t, at::TensorOptions(at::kLong));
  const Tensor x_start = predict(schedule_, output, x, steps, clip).x_start;
  if (t == 0) return x_start;
  const double alpha = schedule_.sqrt_alphas_cumprod[t], sigma = schedule_.sqrt_one_minus_alphas_cumprod[t];
  const double next_alpha = schedule_.sqrt_alphas_cumprod[t - 1];
  const double next_sigma = schedule_.sqrt_one_minus_alphas_cumprod[t - 1];
  const double h = std::log(next_alpha / next_sigma) - std::log(alpha / sigma);
  Tensor direction = x_start;
  if (before_.defined() && before_.sizes() == x_start.sizes()) {
    direction = x_start + (x_start - before_) * (h / (2 * before_h_));
  }
  before_ = x_start;
  before_h_ = h;
  return x * (next_sigma / sigma) - direction * (next_alpha * std::expm1(-h));
}

}  // namespace moh::diffusion
