// Noise schedules in float64 (Ho et al. 2020; Nichol and Dhariwal 2021), and the same process walked in fewer steps.
//
// x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, abar_t the product of (1 - beta_s) over s <= t. A respaced process
// keeps the abar of the chosen steps and takes its betas from their ratios.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moh::diffusion {

struct Schedule {
  std::vector<std::int64_t> timestep_map;  // this process's step -> step of the full one, which the network is told
  std::vector<double> betas, alphas_cumprod, alphas_cumprod_prev;
  std::vector<double> sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod;
  std::vector<double> sqrt_recip_alphas_cumprod, sqrt_recipm1_alphas_cumprod;
  // Of q(x_{t-1} | x_t, x_0): mean = coef1 x_0 + coef2 x_t. The variance of step 0 is 0; its logarithm is clipped to
  // that of step 1.
  std::vector<double> posterior_variance, posterior_log_variance_clipped;
  std::vector<double> posterior_mean_coef1, posterior_mean_coef2;

  std::int64_t steps() const { return static_cast<std::int64_t>(betas.size()); }
};

Schedule make_schedule(std::vector<double> betas);
// Betas rise linearly from 1e-4 to 0.02 over 1000 steps; with another number of steps they are scaled by 1000 / steps.
Schedule linear_schedule(std::int64_t steps = 1000);

// Which steps of `total` remain. "250": so many, evenly spaced, both ends included; "10,15,20": the range in equal
// sections with so many each; "ddim50": every (total/50)-th, from 0; "quad20": so many, their square roots evenly
// spaced, which makes about even steps in the logarithm of the signal-to-noise ratio. Errors: more steps than there
// are, no whole stride.
std::vector<std::int64_t> spaced_timesteps(std::int64_t total, const std::string& respacing);
Schedule respaced(const Schedule& full, const std::vector<std::int64_t>& timesteps);
Schedule respaced(const Schedule& full, const std::string& respacing);

}  // namespace moh::diffusion
