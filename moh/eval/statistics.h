// Means and standard errors as lm-evaluation-harness gives them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace moh::eval {

double mean(const std::vector<double>& values);
// Of the mean, by the sample's deviation; nothing for fewer than two values.
std::optional<double> mean_stderr(const std::vector<double>& values);

// exp(-mean) of log-likelihoods, and the deviation of its value over 100,000 resamples: a thousand by each of
// Python's generators of seeds 0 to 99. `cancelled` is looked at now and then: nothing is returned once it is true.
double perplexity_of(const std::vector<double>& log_likelihoods);
std::optional<double> perplexity_stderr(const std::vector<double>& log_likelihoods,
                                        const std::function<bool()>& cancelled);

// Of several tasks' scores together, weighted by their numbers of documents; nothing if a task has none.
double weighted_mean(const std::vector<double>& values, const std::vector<std::int64_t>& sizes);
std::optional<double> pooled_stderr(const std::vector<std::optional<double>>& stderrs,
                                    const std::vector<std::int64_t>& sizes);

}  // namespace moh::eval
