// The linear router against loops in float64, and its gradients.
#include "moh/layers/routers/linear.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "moh/base/error.h"
#include "moh/layers/routers/linear_keys.h"

namespace {

using at::Tensor;
using namespace moh::layers;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Gates of one token, from its scores.
std::vector<double> expected_gates(const std::vector<double>& scores, const LinearChoice& choice) {
  const auto heads = static_cast<std::int64_t>(scores.size());
  std::vector<double> gates(heads, 0);
  std::vector<std::int64_t> order(heads - choice.shared);
  std::iota(order.begin(), order.end(), choice.shared);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
  for (std::int64_t i = 0; i < choice.shared; ++i) gates[i] = 1;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const bool selected = choice.threshold ? scores[order[i]] > *choice.threshold : std::cmp_less(i, choice.top_k);
    const double threshold = choice.threshold && std::isfinite(*choice.threshold) ? *choice.threshold : 0;
    if (selected) gates[order[i]] = choice.weighted ? sigmoid(scores[order[i]] - threshold) : 1;
  }
  return gates;
}

TEST(LinearRouter, TokensThatUseAllHeadsDoSoWhateverTheirScores) {
  const Tensor scores = at::tensor({-3.0, 0.5, 2.0, -3.0, 0.5, 2.0}).view({2, 3});
  const Tensor first = at::tensor({1, 0}).to(at::kBool).unsqueeze(-1);
  for (const LinearChoice& choice : {LinearChoice{.top_k = 1}, LinearChoice{.threshold = 1.0}}) {
    LinearChoice named = choice;
    named.all_of = first;
    EXPECT_TRUE(at::equal(route_linear(scores, named).gates, at::tensor({1., 1., 1., 0., 0., 1.}).view({2, 3})));
  }
  LinearChoice weighted{.threshold = 1.0, .weighted = true, .all_of = first};
  EXPECT_TRUE(at::allclose(route_linear(scores, weighted).gates[0], at::sigmoid(scores[0] - 1.0)));
}

TEST(LinearRouter, GatesAreThoseOfTheFormula) {
  at::manual_seed(1);
  const Tensor x = at::randn({2, 5, 12}), weight = at::randn({6, 12}), bias = at::randn({6});
  const double minus_infinity = -std::numeric_limits<double>::infinity();
  for (const bool weighted : {false, true}) {
    for (const LinearChoice& choice :
         {LinearChoice{.shared = 0, .top_k = 4}, LinearChoice{.shared = 2, .top_k = 1}, LinearChoice{.shared = 6},
          LinearChoice{.threshold = 0.3}, LinearChoice{.shared = 2, .threshold = -0.5},
          LinearChoice{.threshold = minus_infinity}, LinearChoice{.threshold = 1e9}}) {
      LinearChoice named = choice;
      named.weighted = weighted;
      const auto routing = route_linear(linear_scores(x, weight, bias), named);
      double mistakes = 0;
      for (std::int64_t b = 0; b < 2; ++b) {
        for (std::int64_t t = 0; t < 5; ++t) {
          std::vector<double> scores(6);
          for (std::int64_t h = 0; h < 6; ++h) {
            scores[h] = bias[h].item<double>();
            for (std::int64_t c = 0; c < 12; ++c) scores[h] += x[b][t][c].item<double>() * weight[h][c].item<double>();
          }
          const auto expected = expected_gates(scores, named);
          for (std::int64_t h = 0; h < 6; ++h) {
            mistakes = std::max(mistakes, std::abs(routing.gates[b][t][h].item<double>() - expected[h]));
          }
        }
      }
      EXPECT_LT(mistakes, 1e-5) << weighted << ", " << choice.shared << " + " << choice.top_k;
      EXPECT_EQ(routing.indices.size(-1), choice.threshold ? 0 : choice.top_k);
    }
  }
}

TEST(LinearRouter, ScoresAreComputedInFp32WhateverTheInput) {
  at::manual_seed(2);
  const Tensor x = at::randn({3, 40}).to(at::kBFloat16), weight = at::randn({5, 40}), bias = at::randn({5});
  const Tensor expected = at::matmul(x.to(at::kDouble), weight.t().to(at::kDouble)) + bias;
  EXPECT_TRUE(at::allclose(linear_scores(x, weight, bias).to(at::kDouble), expected, 1e-5, 1e-5));
  EXPECT_EQ(linear_scores(x.to(at::kDouble), weight, bias).scalar_type(), at::kDouble);
}

TEST(LinearRouter, GradientsAreThoseOfTheSigmoid) {
  const Tensor start = at::tensor({0.9, -0.2, 0.4, 0.1}, at::TensorOptions(at::kDouble)).reshape({1, 4});
  const Tensor outer = at::tensor({1.0, 2.0, 3.0, 4.0}, at::TensorOptions(at::kDouble));
  for (const bool weighted : {false, true}) {
    Tensor scores = start.clone().set_requires_grad(true);
    (route_linear(scores, {.threshold = 0.2, .weighted = weighted}).gates * outer).sum().backward();
    for (std::int64_t h = 0; h < 4; ++h) {
      const double score = start[0][h].item<double>(), weight = sigmoid(score - 0.2);
      const bool counts = !weighted || score > 0.2;
      EXPECT_NEAR(scores.grad()[0][h].item<double>(), counts ? (h + 1) * weight * (1 - weight) : 0, 1e-12);
    }
  }
}

TEST(LinearRouter, MeansStandForHeadsThatAreLeftOut) {
  at::manual_seed(3);
  const Tensor gates = at::tensor({1.0, 0.0, 0.5, 0.0}).reshape({1, 1, 4});
  const Tensor weight = at::randn({7, 4}), bias = at::randn({7});
  const Tensor y = mean_heads(gates, weight, bias);
  EXPECT_TRUE(at::allclose(y[0][0], weight.select(1, 1) + weight.select(1, 3) + 0.5 * weight.select(1, 2) + bias));
}

TEST(LinearRouter, ThresholdsLieBetweenTheStoredOnes) {
  moh::Json own = {{"choose", "threshold"}, {"activated", 0.625}};
  own["thresholds"] = {{4, 2, 1, -1, -8}, {9, 8, 7, 6, 5}};
  EXPECT_TRUE(by_threshold(own));
  EXPECT_DOUBLE_EQ(layer_threshold(own, 0), 0);
  EXPECT_DOUBLE_EQ(layer_threshold(own, 1), 6.5);
  own["activated"] = 0.25;
  EXPECT_DOUBLE_EQ(layer_threshold(own, 0), 2);
  own["activated"] = 1;
  EXPECT_LT(layer_threshold(own, 0), -1e300);
  EXPECT_FALSE(by_threshold(moh::Json::object()));
}

TEST(LinearRouter, SaysWhatIsWrong) {
  const Tensor scores = at::zeros({1, 4});
  EXPECT_THROW(route_linear(scores, {.shared = 5}), moh::Error);
  EXPECT_THROW(route_linear(scores, {.shared = 2, .top_k = 3}), moh::Error);
  EXPECT_THROW(route_linear(scores, {.shared = 0, .top_k = 0}), moh::Error);
}

}  // namespace
