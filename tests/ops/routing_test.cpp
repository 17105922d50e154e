// Routers against the float64 references that know no torch, and the facts of the paper.
#include "moh/ops/routing.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "moh/kernels/reference/routing.h"
#include "tests/ops/test_device.h"

namespace {

using at::Tensor;
using namespace moh::ops;

namespace reference = moh::kernels::reference;

std::vector<double> numbers(const Tensor& row) {
  const Tensor flat = row.to(at::kCPU, at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

reference::Matrix rows_of(const Tensor& matrix) {
  reference::Matrix rows;
  for (std::int64_t i = 0; i < matrix.size(0); ++i) rows.push_back(numbers(matrix[i]));
  return rows;
}

TEST(RouteTwoStage, MatchesTheFormulaInEveryCase) {
  at::manual_seed(5);
  const struct {
    int heads, shared, top_k;
  } cases[] = {{8, 3, 2}, {8, 1, 2}, {8, 0, 3}, {8, 8, 0}, {8, 4, 4}, {6, 2, 1}, {1, 0, 1}};
  for (const auto& c : cases) {
    for (const bool authors : {false, true}) {
      const int routed = c.heads - c.shared, width = 12;
      const auto options = on_device(at::kDouble);
      const Tensor x = at::randn({2, 5, width}, options), wg = at::randn({routed, width}, options),
                   wg_1 = at::randn({c.shared, width}, options), wg_0 = at::randn({2, width}, options);
      const auto routing =
          route_two_stage(x, wg, wg_1, wg_0, c.heads, c.shared, c.top_k, authors ? "authors" : "paper");
      ASSERT_EQ(routing.gates.sizes(), (at::IntArrayRef{2, 5, c.heads}));
      for (int b = 0; b < 2; ++b) {
        for (int t = 0; t < 5; ++t) {
          const auto expected = reference::route_two_stage(
              numbers(x[b][t]), rows_of(wg), rows_of(wg_1), rows_of(wg_0), c.heads, c.shared, c.top_k,
              authors ? reference::GateForm::kAuthors : reference::GateForm::kPaper);
          for (int head = 0; head < c.heads; ++head) {
            EXPECT_NEAR(routing.gates[b][t][head].item<double>(), expected.gates[head], 1e-12)
                << c.heads << " " << c.shared << " " << c.top_k << " authors=" << authors << " head " << head;
          }
        }
      }
    }
  }
}

// Without gradients one kernel does it all; with them it is LibTorch's operations.
TEST(RouteTwoStage, TheSameWithAndWithoutGradients) {
  at::manual_seed(6);
  const struct {
    int heads, shared, top_k;
  } cases[] = {{8, 3, 2}, {8, 1, 2}, {8, 0, 3}, {8, 8, 0}, {8, 5, 0},
               {8, 4, 4}, {6, 2, 1}, {1, 1, 0}, {1, 0, 1}, {3, 1, 0}};
  for (const auto& c : cases) {
    for (const std::string form : {"paper", "authors"}) {
      for (const std::int64_t tokens : {0, 7, 1500}) {
        const int routed = c.heads - c.shared, width = 12;
        const Tensor x = at::randn({2, tokens, width}), wg = at::randn({routed, width}),
                     wg_1 = at::randn({c.shared, width}), wg_0 = at::randn({2, width});
        const auto route = [&](const Tensor& input) {
          return route_two_stage(input, wg, wg_1, wg_0, c.heads, c.shared, c.top_k, form);
        };
        const auto plain = route(x), traced = route(x.clone().set_requires_grad(true));
        const std::string what = form + " " + std::to_string(c.heads) + " " + std::to_string(c.shared) + " " +
                                 std::to_string(c.top_k) + ", tokens " + std::to_string(tokens);
        ASSERT_EQ(plain.gates.sizes(), traced.gates.sizes()) << what;
        EXPECT_TRUE(at::allclose(plain.gates, traced.gates, 1e-5, 1e-6)) << what;
        EXPECT_TRUE(at::equal(plain.gates.eq(0), traced.gates.eq(0))) << what;
        EXPECT_TRUE(at::equal(plain.indices, traced.indices)) << what;
        EXPECT_TRUE(at::allclose(plain.probabilities, traced.probabilities, 1e-5, 1e-7)) << what;
        EXPECT_FALSE(plain.gates.requires_grad());
      }
    }
  }
}

TEST(RouteTwoStage, UniformScoresGiveGatesOfOneInTheAuthorsForm) {
  const Tensor zero = at::zeros({8, 4}, on_device()), x = at::randn({1, 3, 4}, on_device());
  const auto routing =
      route_two_stage(x, zero.narrow(0, 0, 5), zero.narrow(0, 0, 3), zero.narrow(0, 0, 2), 8, 3, 2, "authors");
  EXPECT_TRUE(at::allclose(routing.gates.sum(-1), at::full({1, 3}, 5.0, on_device())));
  EXPECT_TRUE(
      at::equal(routing.indices, at::tensor({0, 1}, on_device(at::kLong)).expand({1, 3, 2})));  // ties: lower index
}

TEST(RouteTwoStage, OneRoutedHeadGetsNoTaskGradientInTheAuthorsForm) {
  const Tensor x = at::randn({2, 6, 4}, on_device());
  const auto weight = [](int rows) { return at::randn({rows, 4}, on_device()).set_requires_grad(true); };
  const Tensor wg = weight(5), wg_1 = weight(3), wg_0 = weight(2);
  const auto routing = route_two_stage(x, wg, wg_1, wg_0, 8, 3, 1, "authors");
  (routing.gates * at::randn({2, 6, 8}, on_device())).sum().backward();
  EXPECT_LE(wg.grad().abs().max().item<double>(), 1e-6);
  EXPECT_GT(wg_0.grad().abs().max().item<double>(), 1e-3);
}

TEST(RouteTwoStage, SaysWhatIsWrong) {
  const Tensor x = at::randn({1, 2, 4}, on_device());
  EXPECT_THROW(route_two_stage(x, {}, {}, {}, 8, 3, 2, "paper"), std::exception);  // wg missing
  EXPECT_THROW(route_two_stage(x, at::randn({5, 4}, on_device()), {}, {}, 8, 3, 6, "paper"),
               std::exception);  // top_k > E
  EXPECT_THROW(route_two_stage(x, at::randn({5, 4}, on_device()), {}, {}, 8, 3, 2, "official"), std::exception);
  EXPECT_THROW(route_two_stage(x, {}, {}, {}, 8, 0, 0, "paper"), std::exception);  // nothing active
}

TEST(RouteQueryNorm, MatchesTheFormula) {
  at::manual_seed(6);
  const Tensor query = at::randn({2, 3, 8, 5}, on_device(at::kDouble));
  const auto routing = route_query_norm(query, 3, 2);
  std::vector<reference::TokenRouting> tokens;
  for (int b = 0; b < 2; ++b) {
    for (int t = 0; t < 3; ++t) {
      tokens.push_back(reference::route_query_norm(rows_of(query[b][t]), 3, 2));
      for (int i = 0; i < 5; ++i) {
        EXPECT_NEAR(routing.probabilities[b][t][i].item<double>(), tokens.back().probabilities[i], 1e-12);
      }
      double norms[5], mean = 0, variance = 0, sum = 0;
      for (int i = 0; i < 5; ++i) mean += (norms[i] = query[b][t][3 + i].norm().item<double>()) / 5;
      for (const double norm : norms) variance += (norm - mean) * (norm - mean) / 4;
      for (const double norm : norms) sum += std::exp(norm / std::sqrt(variance));
      for (int i = 0; i < 5; ++i) {
        EXPECT_NEAR(routing.probabilities[b][t][i].item<double>(), std::exp(norms[i] / std::sqrt(variance)) / sum,
                    1e-12);
        const int better = static_cast<int>(std::count_if(norms, norms + 5, [&](double n) { return n > norms[i]; }));
        EXPECT_EQ(routing.gates[b][t][3 + i].item<double>(), better < 2 ? 1.0 : 0.0);
      }
      for (int i = 0; i < 3; ++i) EXPECT_EQ(routing.gates[b][t][i].item<double>(), 1.0);
    }
  }
  for (const auto& [form, name] :
       {std::pair(reference::GateForm::kPaper, "paper"), std::pair(reference::GateForm::kAuthors, "authors")}) {
    EXPECT_NEAR(load_balance_loss(routing.probabilities, routing.indices, name).item<double>(),
                reference::load_balance_loss(tokens, form), 1e-12);
  }
}

TEST(RouteQueryNorm, EqualNormsAreUniformAndFinite) {
  for (const int heads : {2, 5}) {
    Tensor query = at::zeros({1, 2, heads, 4}, on_device()).set_requires_grad(true);
    const auto routing = route_query_norm(query, 1, 1);
    EXPECT_TRUE(at::allclose(routing.probabilities, at::full({1, 2, heads - 1}, 1.0 / (heads - 1), on_device())));
    EXPECT_TRUE(routing.indices.eq(0).all().item<bool>());
    if (heads == 2) continue;  // one routed head has no score that could change
    routing.gates.sum().backward();
    EXPECT_TRUE(at::isfinite(query.grad()).all().item<bool>());
  }
}

TEST(RouteQueryNorm, ScoresInFp32WhateverTheInput) {
  const Tensor query = at::randn({1, 64, 8, 16}, on_device()).to(at::kBFloat16);
  const auto half = route_query_norm(query, 4, 2), full = route_query_norm(query.to(at::kFloat), 4, 2);
  EXPECT_EQ(half.probabilities.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(half.indices, full.indices));
}

TEST(RouteQueryNorm, GradientGoesStraightThrough) {
  const Tensor query = at::randn({1, 4, 6, 8}, on_device(at::kDouble)).set_requires_grad(true);
  const Tensor weights = at::randn({1, 4, 6}, on_device(at::kDouble));
  const auto routing = route_query_norm(query, 2, 2);
  (routing.gates * weights).sum().backward();
  const Tensor straight = query.grad().clone();
  query.mutable_grad() = Tensor();
  (route_query_norm(query, 2, 2).probabilities * weights.narrow(2, 2, 4)).sum().backward();
  EXPECT_TRUE(at::allclose(straight, query.grad()));
}

TEST(SelectTopK, TiesGoToTheLowerIndexAndNanIsLowest) {
  const float nan = std::nanf("");
  const Tensor scores = at::tensor({1.F, 3.F, 3.F, 0.F, nan, 2.F, 2.F, nan}, on_device()).reshape({2, 4});
  for (const auto type : {at::kFloat, at::kDouble}) {
    const Tensor indices = select_top_k(scores.to(type), 3);
    EXPECT_TRUE(at::equal(indices[1], at::tensor({1, 2, 0}, on_device(at::kLong)))) << indices;
    EXPECT_TRUE(at::equal(indices[0], at::tensor({1, 2, 0}, on_device(at::kLong))));
  }
  EXPECT_THROW(select_top_k(scores, 5), std::exception);
}

TEST(LoadBalanceLoss, MatchesTheFormulaInBothScales) {
  const Tensor probabilities = at::softmax(at::randn({2, 7, 5}, on_device(at::kDouble)), -1);
  const Tensor indices = select_top_k(probabilities, 2);
  double expected = 0;
  for (int i = 0; i < 5; ++i) {
    expected += probabilities.select(-1, i).mean().item<double>() *
                static_cast<double>(indices.eq(i).sum().item<std::int64_t>()) / 14;
  }
  EXPECT_NEAR(load_balance_loss(probabilities, indices, "paper").item<double>(), expected, 1e-12);
  EXPECT_NEAR(load_balance_loss(probabilities, indices, "authors").item<double>(), 5 * expected, 1e-12);
  // Evenly spread: K / E in the paper's scale.
  const Tensor even = at::full({5, 5}, 0.2, on_device(at::kDouble));
  EXPECT_NEAR(load_balance_loss(even, at::arange(5, on_device(at::kLong)).unsqueeze(-1), "paper").item<double>(), 0.2,
              1e-12);
}

}  // namespace
