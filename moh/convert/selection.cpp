#include "moh/convert/selection.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace moh::convert {

using at::Tensor;

double upper_quantile(const Tensor& sorted_values, double share) {
  const Tensor values = sorted_values.to(at::kDouble).contiguous();
  const double* data = values.const_data_ptr<double>();
  const std::int64_t count = values.numel();
  const auto above = std::llround(share * static_cast<double>(count));  // numbers that are to exceed it
  if (above <= 0) return data[count - 1];
  if (above >= count) return data[0] - std::max(1e-6, std::abs(data[0]));
  return (data[count - above - 1] + data[count - above]) / 2;
}

std::vector<std::vector<double>> planned_shares(const std::vector<Tensor>& scores) {
  std::vector<Tensor> flat;
  for (const Tensor& each : scores) flat.push_back(each.flatten());
  const Tensor all = std::get<0>(at::cat(flat).sort());
  std::vector<std::vector<double>> shares(scores.size());
  for (std::int64_t j = 0; j <= kShares; ++j) {
    const double threshold = upper_quantile(all, static_cast<double>(j) / static_cast<double>(kShares));
    for (std::size_t layer = 0; layer < scores.size(); ++layer) {
      shares[layer].push_back(flat[layer].to(at::kDouble).gt(threshold).to(at::kDouble).mean().item<double>());
    }
  }
  return shares;
}

std::vector<double> layer_thresholds(const Tensor& scores, const std::vector<double>& shares) {
  const Tensor sorted = std::get<0>(scores.flatten().sort());
  std::vector<double> thresholds;
  for (const double share : shares) thresholds.push_back(upper_quantile(sorted, share));
  return thresholds;
}

std::vector<double> rank_costs(const Tensor& scores, const Tensor& costs) {
  const Tensor order = std::get<1>(scores.sort(/*stable=*/true, /*dim=*/-1, /*descending=*/true));
  const Tensor means = costs.gather(-1, order).mean(0, /*keepdim=*/false, at::kDouble).contiguous();
  return {means.const_data_ptr<double>(), means.const_data_ptr<double>() + means.numel()};
}

std::vector<std::int64_t> choices_per_layer(const std::vector<std::vector<double>>& rank_costs, double activated) {
  std::vector<std::int64_t> counts;
  std::int64_t total = 0;
  for (const auto& costs : rank_costs) {
    counts.push_back(static_cast<std::int64_t>(costs.size()));
    total += counts.back();
  }
  const auto wanted =
      std::max(std::llround(activated * static_cast<double>(total)), static_cast<long long>(counts.size()));
  for (; total > wanted; --total) {
    std::size_t cheapest = counts.size();
    for (std::size_t layer = 0; layer < counts.size(); ++layer) {
      if (counts[layer] == 1) continue;
      if (cheapest == counts.size() ||
          rank_costs[layer][counts[layer] - 1] < rank_costs[cheapest][counts[cheapest] - 1]) {
        cheapest = layer;
      }
    }
    --counts[cheapest];
  }
  return counts;
}

}  // namespace moh::convert
