#include "moh/kernels/reference/routing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace moh::kernels::reference {
namespace {

std::vector<double> softmax(const std::vector<double>& scores) {
  const double best = *std::max_element(scores.begin(), scores.end());
  std::vector<double> result(scores.size());
  double sum = 0;
  for (std::size_t i = 0; i < scores.size(); ++i) sum += result[i] = std::exp(scores[i] - best);
  for (double& value : result) value /= sum;
  return result;
}

std::vector<double> times(const Matrix& matrix, const std::vector<double>& x) {
  std::vector<double> result;
  for (const auto& row : matrix) result.push_back(std::inner_product(row.begin(), row.end(), x.begin(), 0.0));
  return result;
}

}  // namespace

std::vector<std::int64_t> top_k(const std::vector<double>& scores, std::int64_t count) {
  std::vector<std::int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return scores[a] > scores[b]; });
  order.resize(count);
  return order;
}

TokenRouting route_two_stage(const std::vector<double>& x, const Matrix& wg, const Matrix& wg_1, const Matrix& wg_0,
                             std::int64_t num_heads, std::int64_t shared_heads, std::int64_t count, GateForm form) {
  const bool authors = form == GateForm::kAuthors;
  TokenRouting routing;
  routing.gates.assign(num_heads, 0.0);
  const std::vector<double> shared =
      shared_heads > 1 ? softmax(times(wg_1, x)) : std::vector<double>(shared_heads, 1.0);
  for (std::int64_t i = 0; i < shared_heads; ++i) {
    routing.gates[i] = shared[i] * (authors && shared_heads > 1 ? static_cast<double>(shared_heads) : 1.0);
  }
  if (count == 0) return routing;
  routing.probabilities = softmax(times(wg, x));
  routing.indices = top_k(routing.probabilities, count);
  double chosen = 0;
  for (const std::int64_t i : routing.indices) chosen += routing.probabilities[i];
  for (const std::int64_t i : routing.indices) {
    const double p = routing.probabilities[i];
    routing.gates[shared_heads + i] = authors ? static_cast<double>(count) * p / chosen : p;
  }
  if (shared_heads == 0) return routing;
  const std::vector<double> kind = softmax(times(wg_0, x));
  for (std::int64_t i = 0; i < num_heads; ++i) {
    routing.gates[i] *= kind[i < shared_heads ? 0 : 1] * (authors ? 2.0 : 1.0);
  }
  return routing;
}

TokenRouting route_query_norm(const Matrix& query, std::int64_t shared_heads, std::int64_t count) {
  const auto num_heads = static_cast<std::int64_t>(query.size());
  const auto num_routed = static_cast<double>(num_heads - shared_heads);
  TokenRouting routing;
  routing.gates.assign(num_heads, 0.0);
  std::fill(routing.gates.begin(), routing.gates.begin() + shared_heads, 1.0);
  if (num_heads == shared_heads) return routing;
  std::vector<double> norms;
  for (std::int64_t h = shared_heads; h < num_heads; ++h) {
    norms.push_back(std::sqrt(std::inner_product(query[h].begin(), query[h].end(), query[h].begin(), 0.0)));
  }
  const double mean = std::accumulate(norms.begin(), norms.end(), 0.0) / num_routed;
  double variance = 0;
  for (const double norm : norms) variance += (norm - mean) * (norm - mean);
  const double deviation = num_routed > 1 ? std::sqrt(variance / (num_routed - 1)) : 0.0;
  for (double& norm : norms) norm = deviation > 0 ? norm / deviation : 0.0;  // equal norms: uniform scores
  routing.probabilities = softmax(norms);
  routing.indices = top_k(norms, count);
  for (const std::int64_t i : routing.indices) routing.gates[shared_heads + i] = 1.0;
  return routing;
}

double load_balance_loss(const std::vector<TokenRouting>& tokens, GateForm form) {
  const std::size_t num_routed = tokens.front().probabilities.size();
  std::vector<double> mean(num_routed, 0.0), load(num_routed, 0.0);
  for (const TokenRouting& token : tokens) {
    for (std::size_t i = 0; i < num_routed; ++i) mean[i] += token.probabilities[i] / static_cast<double>(tokens.size());
    for (const std::int64_t i : token.indices) load[i] += 1.0 / static_cast<double>(tokens.size());
  }
  const double sum = std::inner_product(mean.begin(), mean.end(), load.begin(), 0.0);
  return form == GateForm::kAuthors ? sum * static_cast<double>(num_routed) : sum;
}

}  // namespace moh::kernels::reference
