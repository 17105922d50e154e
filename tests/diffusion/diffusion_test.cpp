// Diffusion against closed forms: a normal distribution, whose best prediction of the noise and whose probability-flow
// ODE are known exactly.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "moh/diffusion/dpm_solver.h"
#include "moh/diffusion/gaussian.h"
#include "moh/diffusion/schedule.h"
#include "tests/base/error_of.h"

namespace moh::diffusion {
namespace {

using at::Tensor;
using test::error_of;

const double kMean = 0.4, kDeviation = 0.7;

// E[noise | x_t] for x_0 ~ N(kMean, kDeviation^2), in float64.
Tensor best_noise(const Schedule& schedule, std::int64_t step, const Tensor& x) {
  const double abar = schedule.alphas_cumprod[step];
  const double variance = abar * kDeviation * kDeviation + 1 - abar;
  return (x - std::sqrt(abar) * kMean) * (std::sqrt(1 - abar) / variance);
}

// Where the probability-flow ODE takes x_T.
Tensor exact_end(const Schedule& schedule, const Tensor& x) {
  const double abar = schedule.alphas_cumprod.back();
  const Tensor z = (x - std::sqrt(abar) * kMean) / std::sqrt(abar * kDeviation * kDeviation + 1 - abar);
  return kMean + kDeviation * z;
}

Tensor steps_of(const Tensor& x, std::int64_t step) { return at::full({x.size(0)}, step, at::kLong); }

Tensor walk(const Schedule& schedule, Tensor x, const std::string& sampler, double eta = 0) {
  DpmSolver solver(schedule);
  for (std::int64_t step = schedule.steps() - 1; step >= 0; --step) {
    const Tensor output = best_noise(schedule, step, x), t = steps_of(x, step);
    const Tensor noise = at::randn_like(x);
    if (sampler == "dpm") x = solver.step(output, x, step, false);
    if (sampler == "ddim") x = ddim_step(schedule, output, x, t, noise, eta, false);
    if (sampler == "ddpm") x = ancestral_step(schedule, output, x, t, noise, false);
  }
  return x;
}

TEST(Schedule, RespacingKeepsTheNoiseLevels) {
  const Schedule full = linear_schedule();
  EXPECT_EQ(full.steps(), 1000);
  EXPECT_DOUBLE_EQ(full.betas.front(), 1e-4);
  EXPECT_DOUBLE_EQ(full.betas.back(), 0.02);
  for (const char* respacing : {"250", "50", "1", "2", "ddim50", "ddim1000", "10,15,20", "1000", "ddim1", "quad20", "quad1000", "quad1"}) {
    const Schedule spaced = respaced(full, respacing);
    for (std::int64_t i = 0; i < spaced.steps(); ++i) {
      EXPECT_NEAR(spaced.alphas_cumprod[i], full.alphas_cumprod[spaced.timestep_map[i]], 1e-12) << respacing;
    }
  }
  EXPECT_EQ(spaced_timesteps(1000, "ddim50")[1], 20);
  EXPECT_EQ(spaced_timesteps(1000, "ddim50").back(), 980);
  EXPECT_EQ(spaced_timesteps(1000, "5"), (std::vector<std::int64_t>{0, 250, 500, 749, 999}));  // 749.25 and 499.5, even
  EXPECT_EQ(spaced_timesteps(10, "2,1"), (std::vector<std::int64_t>{0, 4, 5}));
  EXPECT_EQ(spaced_timesteps(101, "quad6"), (std::vector<std::int64_t>{0, 4, 16, 36, 64, 100}));
  EXPECT_EQ(spaced_timesteps(300, "10,15,20").size(), 45U);
  EXPECT_NE(error_of([&] { respaced(full, "1001"); }).find("1001 steps"), std::string::npos);
  EXPECT_NE(error_of([&] { respaced(full, "ddim999"); }).find("whole stride"), std::string::npos);
  for (const char* bad : {"", "x", "-3", "10,", "ddim", "0", "99999999999999999999"}) {
    EXPECT_NE(error_of([&] { respaced(full, bad); }).find("[diffusion]"), std::string::npos) << bad;
  }
}

// A velocity is sqrt(abar) noise - sqrt(1 - abar) x_0. Said in noise it is that noise, its error is 1 / abar times the
// noise's, and the variational term is the one of the same prediction said in noise.
TEST(Velocity, SaysTheSameAsTheNoise) {
  const Schedule schedule = linear_schedule();
  const at::TensorOptions f64(at::kDouble);
  const Tensor x_start = at::rand({6, 3, 4, 4}, f64) * 2 - 1, noise = at::randn({6, 3, 4, 4}, f64);
  const Tensor t = at::tensor({0L, 1L, 120L, 500L, 900L, 999L});
  const Tensor x_t = add_noise(schedule, x_start, t, noise);
  const Tensor abar = at::tensor(schedule.alphas_cumprod, f64).index_select(0, t).view({6, 1, 1, 1});
  const Tensor velocity = abar.sqrt() * noise - (1 - abar).sqrt() * x_start;
  const Tensor wrong = velocity + 0.1 * at::randn_like(velocity), variance = at::rand_like(velocity);
  EXPECT_LT((noise_from_velocity(schedule, velocity, x_t, t) - noise).abs().max().item<double>(), 1e-12);

  const Tensor output = at::cat({wrong, variance}, 1).set_requires_grad(true);
  const Tensor in_noise = noise_from_velocity(schedule, output.detach(), x_t, t);
  EXPECT_TRUE(in_noise.narrow(1, 3, 3).equal(variance));
  const LossTerms of_velocity = training_loss(schedule, output, x_start, x_t, t, noise, Target::kVelocity);
  const LossTerms of_noise = training_loss(schedule, in_noise, x_start, x_t, t, noise);
  EXPECT_TRUE(at::allclose(of_velocity.mse, (velocity - wrong).square().flatten(1).mean(1), 1e-12, 0));
  EXPECT_TRUE(at::allclose(of_velocity.mse * abar.flatten(), of_noise.mse, 1e-6, 0));
  EXPECT_TRUE(at::allclose(of_velocity.vb, of_noise.vb, 1e-6, 0));
  of_velocity.vb.sum().backward();
  EXPECT_EQ(output.grad().narrow(1, 0, 3).abs().max().item<double>(), 0);  // the mean learns from the mse alone
}

TEST(Samplers, DpmSolverIsOfSecondOrder) {
  const Schedule full = linear_schedule();
  const Tensor x = at::linspace(-3, 3, 32, at::kDouble).reshape({32, 1});
  const auto error = [&](const char* steps, const char* sampler) {
    const Schedule schedule = respaced(full, steps);
    return (walk(schedule, x, sampler) - exact_end(schedule, x)).abs().max().item<double>();
  };
  const double dpm_20 = error("quad20", "dpm"), dpm_80 = error("quad80", "dpm"), ddim_80 = error("80", "ddim");
  EXPECT_LT(dpm_80, dpm_20 / 8);  // second order: a sixteenth
  EXPECT_LT(dpm_20, ddim_80);     // twenty steps beat eighty first-order ones
  EXPECT_LT(error("500", "ddim"), ddim_80 / 4);
  EXPECT_LT(error("1000", "ddim"), 0.01);
}

TEST(Samplers, RandomOnesGiveTheDistribution) {
  at::manual_seed(11);
  const Schedule schedule = respaced(linear_schedule(), "250");
  const Tensor x = at::randn({20000, 1}, at::kDouble);
  for (const auto& [sampler, eta] : {std::pair{"ddpm", 0.0}, std::pair{"ddim", 1.0}, std::pair{"ddim", 0.0}}) {
    const Tensor end = walk(schedule, x, sampler, eta);
    EXPECT_NEAR(end.mean().item<double>(), kMean, 0.02) << sampler << " " << eta;
    EXPECT_NEAR(end.std().item<double>(), kDeviation, 0.02) << sampler << " " << eta;
  }
}

TEST(Loss, VariationalTermIsLeastForTheTruth) {
  // With the true noise and the posterior's own variance the divergence is that of two equal normals: 0.
  at::manual_seed(5);
  const Schedule schedule = linear_schedule();
  const Tensor x_start = at::rand({3, 2, 4, 4}, at::kDouble) * 2 - 1, noise = at::randn_like(x_start);
  const Tensor t = at::tensor({1, 400, 999}, at::kLong);
  const Tensor x_t = add_noise(schedule, x_start, t, noise);
  const Tensor truth = at::cat({noise, at::full_like(noise, -1)}, 1);  // v = -1: log of the posterior variance
  const auto exact = training_loss(schedule, truth, x_start, x_t, t, noise);
  EXPECT_LT(exact.mse.abs().max().item<double>(), 1e-20);
  EXPECT_LT(exact.vb.abs().max().item<double>(), 1e-9);
  const auto off = training_loss(schedule, at::cat({noise, at::ones_like(noise)}, 1), x_start, x_t, t, noise);
  // KL of two centred normals of variances p (posterior) and b (beta), in bits.
  for (std::int64_t i = 0; i < 3; ++i) {
    const std::int64_t step = t[i].item<std::int64_t>();
    const double ratio = schedule.posterior_variance[step] / schedule.betas[step];
    EXPECT_NEAR(off.vb[i].item<double>(), 0.5 * (ratio - 1 - std::log(ratio)) / std::log(2.0), 1e-9);
  }
  EXPECT_FALSE(training_loss(schedule, noise, x_start, x_t, t, noise).vb.defined());
}

TEST(Loss, VariationalTermDoesNotTeachTheNoise) {
  at::manual_seed(6);
  const Schedule schedule = linear_schedule();
  const Tensor x_start = at::rand({2, 1, 3, 3}) * 2 - 1, noise = at::randn_like(x_start);
  const Tensor t = at::tensor({0, 300}, at::kLong), x_t = add_noise(schedule, x_start, t, noise);
  Tensor output = at::randn({2, 2, 3, 3}).set_requires_grad(true);
  training_loss(schedule, output, x_start, x_t, t, noise).vb.sum().backward();
  EXPECT_EQ(output.grad().narrow(1, 0, 1).abs().max().item<double>(), 0);
  EXPECT_GT(output.grad().narrow(1, 1, 1).abs().max().item<double>(), 0);
}

TEST(Loss, LevelsSumToOne) {
  // At t = 0 the term is -log2 of the probability of x_0's level: over all 256 levels the probabilities sum to 1.
  const Schedule schedule = linear_schedule();
  const Tensor levels = (at::arange(256, at::kDouble) / 127.5 - 1).reshape({256, 1, 1});
  const Tensor x_t = at::full({256, 1, 1}, 0.3, at::kDouble), t = at::zeros({256}, at::kLong);
  const Tensor output = at::cat({at::full_like(x_t, 0.1), at::zeros_like(x_t)}, 1);
  const Tensor noise = at::zeros_like(x_t);
  const Tensor bits = training_loss(schedule, output, levels, x_t, t, noise).vb;
  EXPECT_NEAR(at::exp2(-bits).sum().item<double>(), 1.0, 1e-6);
}

TEST(Guidance, Algebra) {
  const Tensor output = at::randn({4, 8, 2, 2});
  const Tensor guided = guide(output, 2.5, 3);
  const Tensor labelled = output.narrow(0, 0, 2), free = output.narrow(0, 2, 2);
  for (std::int64_t half = 0; half < 2; ++half) {
    const Tensor part = guided.narrow(0, 2 * half, 2);
    EXPECT_TRUE(at::allclose(part.narrow(1, 0, 3), (2.5 * labelled - 1.5 * free).narrow(1, 0, 3), 1e-4, 1e-5));
    EXPECT_TRUE(at::equal(part.narrow(1, 3, 5), output.narrow(0, 2 * half, 2).narrow(1, 3, 5)));
  }
  EXPECT_TRUE(at::allclose(guide(output, 1.0, 4).narrow(0, 0, 2), labelled, 1e-4, 1e-5));
  EXPECT_NE(error_of([&] { guide(output.narrow(0, 0, 3), 1, 3); }).find("as many without"), std::string::npos);
}

}  // namespace
}  // namespace moh::diffusion
