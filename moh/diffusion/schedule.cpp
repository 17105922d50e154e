#include "moh/diffusion/schedule.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "moh/base/error.h"

namespace moh::diffusion {
namespace {

std::int64_t parse_count(const std::string& text, const std::string& respacing) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  MOH_CHECK(error == std::errc() && end == text.data() + text.size() && value > 0,
            "[diffusion] steps must be a number (",
            "250), numbers per section (10,15,20) or ddim and a number (ddim50), got `", respacing, "`");
  return value;
}

}  // namespace

Schedule make_schedule(std::vector<double> betas) {
  MOH_CHECK(!betas.empty(), "[diffusion] a schedule needs at least one step");
  Schedule s;
  s.betas = std::move(betas);
  double product = 1.0;
  for (std::size_t t = 0; t < s.betas.size(); ++t) {
    const double beta = s.betas[t], before = product;
    MOH_CHECK(beta > 0 && beta <= 1, "[diffusion] beta of step ", t, " must be in (0, 1], got ", beta);
    product *= 1 - beta;
    s.timestep_map.push_back(static_cast<std::int64_t>(t));
    s.alphas_cumprod.push_back(product);
    s.alphas_cumprod_prev.push_back(before);
    s.sqrt_alphas_cumprod.push_back(std::sqrt(product));
    s.sqrt_one_minus_alphas_cumprod.push_back(std::sqrt(1 - product));
    s.sqrt_recip_alphas_cumprod.push_back(std::sqrt(1 / product));
    s.sqrt_recipm1_alphas_cumprod.push_back(std::sqrt(1 / product - 1));
    s.posterior_variance.push_back(beta * (1 - before) / (1 - product));
    s.posterior_mean_coef1.push_back(beta * std::sqrt(before) / (1 - product));
    s.posterior_mean_coef2.push_back((1 - before) * std::sqrt(1 - beta) / (1 - product));
  }
  for (std::size_t t = 0; t < s.betas.size(); ++t) {
    const std::size_t from = t > 0 || s.betas.size() == 1 ? t : 1;
    s.posterior_log_variance_clipped.push_back(std::log(std::max(s.posterior_variance[from], 1e-20)));
  }
  return s;
}

Schedule linear_schedule(std::int64_t steps) {
  MOH_CHECK(steps > 20, "[diffusion] a linear schedule needs more than 20 steps, got ", steps);
  const double scale = 1000.0 / static_cast<double>(steps), first = scale * 1e-4, last = scale * 0.02;
  const double stride = (last - first) / static_cast<double>(steps - 1);
  std::vector<double> betas;
  for (std::int64_t t = 0; t < steps; ++t) betas.push_back(first + static_cast<double>(t) * stride);
  betas.back() = last;
  return make_schedule(std::move(betas));
}

std::vector<std::int64_t> spaced_timesteps(std::int64_t total, const std::string& respacing) {
  std::vector<std::int64_t> timesteps;
  if (respacing.starts_with("ddim")) {
    const std::int64_t wanted = parse_count(respacing.substr(4), respacing);
    for (std::int64_t stride = 1; stride <= total; ++stride) {
      if ((total + stride - 1) / stride != wanted) continue;
      for (std::int64_t t = 0; t < total; t += stride) timesteps.push_back(t);
      return timesteps;
    }
    fail("[diffusion] ", total, " steps cannot be walked in ", wanted, " with a whole stride; try ",
         wanted > total ? std::to_string(total) : "a divisor of " + std::to_string(total));
  }
  if (respacing.starts_with("quad")) {
    const std::int64_t count = parse_count(respacing.substr(4), respacing);
    MOH_CHECK(count <= total, "[diffusion] ", count, " steps were asked for where the process has ", total);
    for (std::int64_t i = 0; i < count; ++i) {
      const double share = count == 1 ? 1.0 : static_cast<double>(i) / static_cast<double>(count - 1);
      const auto square = static_cast<std::int64_t>(std::nearbyint(share * share * static_cast<double>(total - 1)));
      timesteps.push_back(std::max(square, i));  // the first squares are closer than whole steps
    }
    return timesteps;
  }
  std::vector<std::int64_t> counts;
  for (std::size_t from = 0; from <= respacing.size();) {
    const std::size_t comma = std::min(respacing.find(',', from), respacing.size());
    counts.push_back(parse_count(respacing.substr(from, comma - from), respacing));
    from = comma + 1;
  }
  const auto sections = static_cast<std::int64_t>(counts.size());
  std::int64_t start = 0;
  for (std::int64_t section = 0; section < sections; ++section) {
    const std::int64_t size = total / sections + (section < total % sections ? 1 : 0), count = counts[section];
    MOH_CHECK(count <= size, "[diffusion] ", count, " steps were asked for where the process has ", size);
    const double stride = count == 1 ? 1.0 : static_cast<double>(size - 1) / static_cast<double>(count - 1);
    double offset = 0;  // summed up, halves to even: the rounding that existing samples were made with
    for (std::int64_t i = 0; i < count; ++i, offset += stride) {
      timesteps.push_back(start + static_cast<std::int64_t>(std::nearbyint(offset)));
    }
    start += size;
  }
  return timesteps;
}

Schedule respaced(const Schedule& full, const std::vector<std::int64_t>& timesteps) {
  const std::set<std::int64_t> kept(timesteps.begin(), timesteps.end());
  MOH_CHECK(!kept.empty() && *kept.begin() >= 0 && *kept.rbegin() < full.steps(), "[diffusion] steps must be in 0..",
            full.steps() - 1);
  std::vector<double> betas;
  std::vector<std::int64_t> map;
  double last = 1.0;
  for (const std::int64_t t : kept) {
    betas.push_back(1 - full.alphas_cumprod[t] / last);
    last = full.alphas_cumprod[t];
    map.push_back(full.timestep_map[t]);
  }
  Schedule schedule = make_schedule(std::move(betas));
  schedule.timestep_map = std::move(map);
  return schedule;
}

Schedule respaced(const Schedule& full, const std::string& respacing) {
  return respaced(full, spaced_timesteps(full.steps(), respacing));
}

}  // namespace moh::diffusion
