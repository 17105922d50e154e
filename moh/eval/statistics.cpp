#include "moh/eval/statistics.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <cmath>
#include <numeric>

#include "moh/eval/python_random.h"

namespace moh::eval {
namespace {

constexpr std::int64_t kGenerators = 100, kDraws = 1000;

double sample_deviation(const std::vector<double>& values) {
  const double center = mean(values);
  double squares = 0;
  for (const double value : values) squares += (value - center) * (value - center);
  return std::sqrt(squares / (static_cast<double>(values.size()) - 1));
}

}  // namespace

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::optional<double> mean_stderr(const std::vector<double>& values) {
  if (values.size() < 2) return std::nullopt;
  return sample_deviation(values) / std::sqrt(static_cast<double>(values.size()));
}

double perplexity_of(const std::vector<double>& log_likelihoods) { return std::exp(-mean(log_likelihoods)); }

std::optional<double> perplexity_stderr(const std::vector<double>& log_likelihoods,
                                        const std::function<bool()>& cancelled) {
  if (log_likelihoods.size() < 2) return std::nullopt;
  const auto size = static_cast<double>(log_likelihoods.size());
  std::vector<double> results(kGenerators * kDraws);
  std::atomic<bool> stopped{false};
  at::parallel_for(0, kGenerators, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t seed = begin; seed < end && !stopped; ++seed) {
      PythonRandom random(static_cast<std::uint32_t>(seed));
      for (std::int64_t draw = 0; draw < kDraws; ++draw) {
        if (cancelled && cancelled()) {
          stopped = true;
          return;
        }
        double sum = 0;
        for (std::size_t i = 0; i < log_likelihoods.size(); ++i) {
          sum += log_likelihoods[static_cast<std::size_t>(random.uniform() * size)];
        }
        results[static_cast<std::size_t>(seed * kDraws + draw)] = std::exp(-sum / size);
      }
    }
  });
  if (stopped) return std::nullopt;
  return sample_deviation(results);
}

double weighted_mean(const std::vector<double>& values, const std::vector<std::int64_t>& sizes) {
  double sum = 0, weight = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    sum += values[i] * static_cast<double>(sizes[i]);
    weight += static_cast<double>(sizes[i]);
  }
  return sum / weight;
}

std::optional<double> pooled_stderr(const std::vector<std::optional<double>>& stderrs,
                                    const std::vector<std::int64_t>& sizes) {
  double variance = 0, total = 0;
  for (std::size_t i = 0; i < stderrs.size(); ++i) {
    if (!stderrs[i]) return std::nullopt;
    const auto size = static_cast<double>(sizes[i]);
    variance += (size - 1) * *stderrs[i] * *stderrs[i] * size;
    total += size;
  }
  return std::sqrt(variance / (total - static_cast<double>(stderrs.size())) / total);
}

}  // namespace moh::eval
