// The Gaussian diffusion process on tensors: adding noise, the training loss, and single steps back.
//
// An output is the predicted noise [N, C, ...] or noise and variance channels [N, 2C, ...] (learned sigma: the share in
// [-1, 1] goes from log of the posterior variance to log beta; Nichol and Dhariwal 2021). A network that predicts the
// velocity instead goes through noise_from_velocity. A step index t [N] is that of the given schedule; coefficients are
// computed in float64 and rounded once.
#pragma once

#include <ATen/core/Tensor.h>

#include "moh/diffusion/schedule.h"

namespace moh::diffusion {

// x_t from x_0.
at::Tensor add_noise(const Schedule& schedule, const at::Tensor& x_start, const at::Tensor& t, const at::Tensor& noise);

// What a network is trained to say of x_t: the noise (the paper), or the velocity sqrt(abar) noise - sqrt(1 - abar) x_0
// (Salimans and Ho 2022), whose error weighs 1 / abar times that of the noise: steps with little signal count for more.
enum class Target { kNoise, kVelocity };

// The output of a network for velocity, said in noise: sqrt(abar) velocity + sqrt(1 - abar) x_t; variance stays.
at::Tensor noise_from_velocity(const Schedule& schedule, const at::Tensor& output, const at::Tensor& x,
                               const at::Tensor& t);

struct Prediction {
  at::Tensor mean, log_variance;  // of p(x_{t-1} | x_t)
  at::Tensor x_start;
};
// `clip`: the predicted x_0 is kept within [-1, 1].
Prediction predict(const Schedule& schedule, const at::Tensor& output, const at::Tensor& x, const at::Tensor& t,
                   bool clip);

struct LossTerms {
  at::Tensor mse;   // [N] of the target
  at::Tensor vb;    // [N] variational term in bits per dimension; its gradient reaches the variance channels alone.
                    // Undefined when the variance is not learned.
  at::Tensor loss;  // [N] mse + vb
};
// `output` predicts `target`. t = 0 is the likelihood of x_0 in 256 levels over [-1, 1].
LossTerms training_loss(const Schedule& schedule, const at::Tensor& output, const at::Tensor& x_start,
                        const at::Tensor& x_t, const at::Tensor& t, const at::Tensor& noise,
                        Target target = Target::kNoise);

// One step of ancestral sampling. `noise` [N, C, ...]; unused where t = 0.
at::Tensor ancestral_step(const Schedule& schedule, const at::Tensor& output, const at::Tensor& x, const at::Tensor& t,
                          const at::Tensor& noise, bool clip);
// One DDIM step (Song et al. 2021): eta 0 is deterministic, eta 1 has the posterior's variance.
at::Tensor ddim_step(const Schedule& schedule, const at::Tensor& output, const at::Tensor& x, const at::Tensor& t,
                     const at::Tensor& noise, double eta, bool clip);

// Classifier-free guidance on an output for [labels; no label]: the first `channels` of both halves become
// none + scale * (label - none), the rest stays. The authors guide 3 of 4 latent channels.
at::Tensor guide(const at::Tensor& output, double scale, std::int64_t channels);

}  // namespace moh::diffusion
