// How many heads every layer gets, from scores on calibration text. A choice is a head, or a KV head with its queries.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace moh::convert {

constexpr std::int64_t kShares = 32;  // thresholds are stored for the shares 0, 1/32, ... 1

// The value that `share` of all numbers exceed, halfway between the two neighbours. share 0: the largest; share 1:
// below the least.
double upper_quantile(const at::Tensor& sorted_values, double share);

// One threshold for all layers gives every layer a share of its own: [layers][kShares + 1], by the overall share.
// scores: one [N, choices] per layer.
std::vector<std::vector<double>> planned_shares(const std::vector<at::Tensor>& scores);

// Thresholds of one layer for these shares of its own scores [N, choices]; they fall.
std::vector<double> layer_thresholds(const at::Tensor& scores, const std::vector<double>& shares);

// cost[k]: what a layer loses on average by its head of rank k by score (0: the best), costs [N, choices].
std::vector<double> rank_costs(const at::Tensor& scores, const at::Tensor& costs);

// Choices of every layer, `activated` of them over all layers and at least one in each: the cheapest lowest rank goes
// first, over and over.
std::vector<std::int64_t> choices_per_layer(const std::vector<std::vector<double>>& rank_costs, double activated);

}  // namespace moh::convert
