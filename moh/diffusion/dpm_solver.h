// DPM-Solver++ (2M), Lu et al. 2022: the deterministic ODE in the predicted x_0, second order with one network call a
// step. Twenty steps do what ancestral sampling needs hundreds for.
//
//   lambda = log(sqrt(abar) / sqrt(1 - abar)), h = lambda_next - lambda
//   D      = x0 + (x0 - x0_before) h / (2 h_before)              first step, and the last one, to sigma = 0: D = x0
//   x_next = sigma_next / sigma x - alpha_next (exp(-h) - 1) D
#pragma once

#include <ATen/core/Tensor.h>

#include "moh/diffusion/schedule.h"

namespace moh::diffusion {

class DpmSolver {
 public:
  explicit DpmSolver(const Schedule& schedule) : schedule_(schedule) {}
  // From step `t` of the schedule to t - 1 (t = 0: to x_0); steps are taken downwards from the last one.
  at::Tensor step(const at::Tensor& output, const at::Tensor& x, std::int64_t t, bool clip);

 private:
  const Schedule& schedule_;
  at::Tensor before_;  // the previous step's predicted x_0
  double before_h_ = 0;
};

}  // namespace moh::diffusion
