#include "moh/diffusion/gaussian.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numbers>

#include "moh/base/error.h"

namespace moh::diffusion {
namespace {

using at::Tensor;

// values[t] as [N, 1, 1, ...] in x's dtype.
Tensor coefficient(const std::vector<double>& values, const Tensor& t, const Tensor& x) {
  const Tensor steps = t.to(at::kCPU, at::kLong).contiguous();
  const std::int64_t* step = steps.const_data_ptr<std::int64_t>();
  std::vector<double> chosen;
  for (std::int64_t i = 0; i < steps.numel(); ++i) {
    MOH_CHECK(step[i] >= 0 && step[i] < static_cast<std::int64_t>(values.size()), "[diffusion] step must be in 0..",
              values.size() - 1, ", got ", step[i]);
    chosen.push_back(values[step[i]]);
  }
  std::vector<std::int64_t> shape(x.dim(), 1);
  shape[0] = steps.numel();
  return at::tensor(chosen, at::TensorOptions(at::kDouble)).to(x.options().requires_grad(false)).reshape(shape);
}

std::vector<double> logs(const std::vector<double>& values) {
  std::vector<double> result;
  for (const double value : values) result.push_back(std::log(value));
  return result;
}

void check_shapes(const Tensor& output, const Tensor& x, const Tensor& t) {
  MOH_CHECK(x.dim() >= 2 && output.dim() == x.dim() && output.size(0) == x.size(0) && t.dim() == 1 &&
                t.size(0) == x.size(0) && (output.size(1) == x.size(1) || output.size(1) == 2 * x.size(1)),
            "[diffusion] output must be [N, C or 2C, ...] and t [N] for x [N, C, ...], got ", output.sizes(), ", ",
            t.sizes(), " and ", x.sizes());
}

struct Normal {
  Tensor mean, log_variance;
};

Normal posterior(const Schedule& s, const Tensor& x_start, const Tensor& x, const Tensor& t) {
  return {coefficient(s.posterior_mean_coef1, t, x) * x_start + coefficient(s.posterior_mean_coef2, t, x) * x,
          coefficient(s.posterior_log_variance_clipped, t, x)};
}

// KL(a || b) per element, in nats.
Tensor kl_divergence(const Normal& a, const Normal& b) {
  return 0.5 * (-1.0 + b.log_variance - a.log_variance + at::exp(a.log_variance - b.log_variance) +
                (a.mean - b.mean).square() * at::exp(-b.log_variance));
}

// The tanh approximation to the normal distribution function that the improved-DDPM loss is defined with.
Tensor approximate_cdf(const Tensor& x) {
  return 0.5 * (1.0 + at::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x.pow(3))));
}

// log of the probability mass of x's level, one of 256 over [-1, 1]; the outer levels reach to infinity.
Tensor level_log_likelihood(const Tensor& x, const Normal& normal) {
  constexpr double kHalfLevel = 1.0 / 255.0, kLeast = 1e-12, kEdge = 0.999;
  const Tensor centred = x - normal.mean, inverse_deviation = at::exp(-0.5 * normal.log_variance);
  const Tensor above = approximate_cdf(inverse_deviation * (centred + kHalfLevel));
  const Tensor below = approximate_cdf(inverse_deviation * (centred - kHalfLevel));
  const Tensor inner = at::log((above - below).clamp_min(kLeast));
  const Tensor last = at::log((1.0 - below).clamp_min(kLeast)), first = at::log(above.clamp_min(kLeast));
  return at::where(x < -kEdge, first, at::where(x > kEdge, last, inner));
}

Tensor mean_of_rest(const Tensor& x) { return x.flatten(1).mean(1); }

Tensor not_first(const Tensor& t, const Tensor& x) {
  std::vector<std::int64_t> shape(x.dim(), 1);
  shape[0] = t.size(0);
  return t.ne(0).to(x.options().requires_grad(false)).reshape(shape);
}

}  // namespace

Tensor add_noise(const Schedule& s, const Tensor& x_start, const Tensor& t, const Tensor& noise) {
  return coefficient(s.sqrt_alphas_cumprod, t, x_start) * x_start +
         coefficient(s.sqrt_one_minus_alphas_cumprod, t, x_start) * noise;
}

Tensor noise_from_velocity(const Schedule& s, const Tensor& output, const Tensor& x, const Tensor& t) {
  check_shapes(output, x, t);
  const std::int64_t channels = x.size(1);
  const Tensor noise = coefficient(s.sqrt_alphas_cumprod, t, x) * output.narrow(1, 0, channels) +
                       coefficient(s.sqrt_one_minus_alphas_cumprod, t, x) * x;
  return at::cat({noise, output.narrow(1, channels, output.size(1) - channels)}, 1);
}

Prediction predict(const Schedule& s, const Tensor& output, const Tensor& x, const Tensor& t, bool clip) {
  check_shapes(output, x, t);
  const std::int64_t channels = x.size(1);
  Prediction result;
  if (output.size(1) == 2 * channels) {
    const Tensor share = (output.narrow(1, channels, channels) + 1.0) / 2.0;
    const Tensor least = coefficient(s.posterior_log_variance_clipped, t, x);
    result.log_variance = share * coefficient(logs(s.betas), t, x) + (1.0 - share) * least;
  } else {  // fixed: beta, but the posterior's at the first step, where its logarithm would be far off
    std::vector<double> variance = s.betas;
    if (variance.size() > 1) variance[0] = s.posterior_variance[1];
    result.log_variance = coefficient(logs(variance), t, x).expand_as(x);
  }
  const Tensor noise = output.narrow(1, 0, channels);
  result.x_start =
      coefficient(s.sqrt_recip_alphas_cumprod, t, x) * x - coefficient(s.sqrt_recipm1_alphas_cumprod, t, x) * noise;
  if (clip) result.x_start = result.x_start.clamp(-1, 1);
  result.mean = posterior(s, result.x_start, x, t).mean;
  return result;
}

LossTerms training_loss(const Schedule& s, const Tensor& output, const Tensor& x_start, const Tensor& x_t,
                        const Tensor& t, const Tensor& noise, Target target) {
  check_shapes(output, x_start, t);
  const std::int64_t channels = x_start.size(1);
  const Tensor predicted = output.narrow(1, 0, channels);
  const bool is_velocity = target == Target::kVelocity;
  const Tensor goal = is_velocity ? coefficient(s.sqrt_alphas_cumprod, t, x_start) * noise -
                                        coefficient(s.sqrt_one_minus_alphas_cumprod, t, x_start) * x_start
                                  : noise;
  LossTerms terms;
  terms.mse = mean_of_rest((goal - predicted).square());
  terms.loss = terms.mse;
  if (output.size(1) == channels) return terms;
  Tensor frozen = at::cat({predicted.detach(), output.narrow(1, channels, channels)}, 1);
  if (is_velocity) frozen = noise_from_velocity(s, frozen, x_t, t);
  const Prediction prediction = predict(s, frozen, x_t, t, /*clip=*/false);
  const Normal model{prediction.mean, prediction.log_variance};
  const Tensor divergence = mean_of_rest(kl_divergence(posterior(s, x_start, x_t, t), model));
  const Tensor likelihood = mean_of_rest(-level_log_likelihood(x_start, model));
  terms.vb = at::where(t.eq(0).to(likelihood.device()), likelihood, divergence) / std::numbers::ln2;
  terms.loss = terms.mse + terms.vb;
  return terms;
}

Tensor ancestral_step(const Schedule& s, const Tensor& output, const Tensor& x, const Tensor& t, const Tensor& noise,
                      bool clip) {
  const Prediction prediction = predict(s, output, x, t, clip);
  return prediction.mean + not_first(t, x) * at::exp(0.5 * prediction.log_variance) * noise;
}

Tensor ddim_step(const Schedule& s, const Tensor& output, const Tensor& x, const Tensor& t, const Tensor& noise,
                 double eta, bool clip) {
  MOH_CHECK(eta >= 0 && eta <= 1, "[diffusion] eta must be in 0..1, got ", eta);
  const Tensor x_start = predict(s, output, x, t, clip).x_start;
  const Tensor direction =
      (coefficient(s.sqrt_recip_alphas_cumprod, t, x) * x - x_start) / coefficient(s.sqrt_recipm1_alphas_cumprod, t, x);
  std::vector<double> deviation, along;
  for (std::int64_t i = 0; i < s.steps(); ++i) {
    const double now = s.alphas_cumprod[i], next = s.alphas_cumprod_prev[i];
    deviation.push_back(eta * std::sqrt((1 - next) / (1 - now)) * std::sqrt(1 - now / next));
    along.push_back(std::sqrt(std::max(0.0, 1 - next - deviation.back() * deviation.back())));
  }
  std::vector<double> shrink;
  for (const double next : s.alphas_cumprod_prev) shrink.push_back(std::sqrt(next));
  const Tensor mean = x_start * coefficient(shrink, t, x) + coefficient(along, t, x) * direction;
  return eta == 0 ? mean : mean + not_first(t, x) * coefficient(deviation, t, x) * noise;
}

Tensor guide(const Tensor& output, double scale, std::int64_t channels) {
  MOH_CHECK(output.size(0) % 2 == 0, "[diffusion] guidance needs an output for labels and as many without, got ",
            output.size(0), " rows");
  MOH_CHECK(channels > 0 && channels <= output.size(1), "[diffusion] guided channels must be in 1..", output.size(1),
            ", got ", channels);
  const std::int64_t half = output.size(0) / 2;
  const Tensor noise = output.narrow(1, 0, channels);
  const Tensor labelled = noise.narrow(0, 0, half), free = noise.narrow(0, half, half);
  const Tensor guided = free + scale * (labelled - free);
  return at::cat({at::cat({guided, guided}, 0), output.narrow(1, channels, output.size(1) - channels)}, 1);
}

}  // namespace moh::diffusion
