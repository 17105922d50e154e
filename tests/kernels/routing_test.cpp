// The float64 routers against values worked out by hand, and Top-K against std::stable_sort.
#include "moh/kernels/routing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <thread>

#include "moh/kernels/reference/routing.h"

namespace {

using namespace moh::kernels;

TEST(ReferenceRouting, TwoStageByHand) {
  // Scores ln 1, ln 2, ln 5 of three routed heads, ln 1, ln 3 of two shared ones, ln 1, ln 4 of the kinds.
  const std::vector<double> x = {1.0};
  const reference::Matrix wg = {{0.0}, {std::log(2.0)}, {std::log(5.0)}}, wg_1 = {{0.0}, {std::log(3.0)}},
                          wg_0 = {{0.0}, {std::log(4.0)}};
  const auto paper = reference::route_two_stage(x, wg, wg_1, wg_0, 5, 2, 2, reference::GateForm::kPaper);
  const double expected_paper[] = {0.2 * 0.25, 0.2 * 0.75, 0, 0.8 * 2 / 8, 0.8 * 5 / 8};
  const auto authors = reference::route_two_stage(x, wg, wg_1, wg_0, 5, 2, 2, reference::GateForm::kAuthors);
  const double expected_authors[] = {0.4 * 0.5, 0.4 * 1.5, 0, 1.6 * 2 * 2 / 7, 1.6 * 2 * 5 / 7};
  for (int i = 0; i < 5; ++i) {
    EXPECT_NEAR(paper.gates[i], expected_paper[i], 1e-14);
    EXPECT_NEAR(authors.gates[i], expected_authors[i], 1e-14);
  }
  EXPECT_EQ(paper.indices, (std::vector<std::int64_t>{2, 1}));
  const auto one_shared = reference::route_two_stage(x, wg, {}, wg_0, 4, 1, 1, reference::GateForm::kAuthors);
  EXPECT_NEAR(one_shared.gates[0], 0.4, 1e-14);
  EXPECT_NEAR(one_shared.gates[3], 1.6, 1e-14);
  const auto none_shared = reference::route_two_stage(x, wg, {}, {}, 3, 0, 2, reference::GateForm::kAuthors);
  const double expected_none_shared[] = {0, 2 * 2.0 / 7, 2 * 5.0 / 7};
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(none_shared.gates[i], expected_none_shared[i], 1e-14);
  const auto all_shared = reference::route_two_stage(x, {}, wg_1, {}, 2, 2, 0, reference::GateForm::kAuthors);
  EXPECT_NEAR(all_shared.gates[0], 0.5, 1e-14);
}

TEST(ReferenceRouting, QueryNormByHand) {
  // Norms 5, 1, 3 of the routed heads: mean 3, unbiased deviation 2.
  const auto routing = reference::route_query_norm({{9, 9}, {3, 4}, {1, 0}, {0, 3}}, 1, 1);
  const double sum = std::exp(2.5) + std::exp(0.5) + std::exp(1.5);
  EXPECT_NEAR(routing.probabilities[0], std::exp(2.5) / sum, 1e-14);
  EXPECT_NEAR(routing.probabilities[2], std::exp(1.5) / sum, 1e-14);
  EXPECT_EQ(routing.gates, (std::vector<double>{1, 1, 0, 0}));
  const auto equal = reference::route_query_norm({{1, 0}, {0, 1}, {1, 0}}, 0, 2);
  EXPECT_EQ(equal.gates, (std::vector<double>{1, 1, 0}));
  EXPECT_NEAR(equal.probabilities[2], 1.0 / 3, 1e-14);
  // Two tokens: P = (.5, .5), f = (1, 0) and E = 2.
  std::vector<reference::TokenRouting> tokens(2, {{}, {0}, {0.5, 0.5}});
  EXPECT_NEAR(reference::load_balance_loss(tokens, reference::GateForm::kPaper), 0.5, 1e-14);
  EXPECT_NEAR(reference::load_balance_loss(tokens, reference::GateForm::kAuthors), 1.0, 1e-14);
}

TEST(SelectTopK, EqualsAStableSort) {
  std::mt19937 random(1);
  Parallel threads;
  threads.num_threads = 3;
  threads.run = [](int workers, Parallel::Body body, void* context) {
    std::vector<std::thread> pool;
    for (int i = 0; i < workers; ++i) pool.emplace_back(body, context, i);
    for (auto& thread : pool) thread.join();
  };
  for (const std::int64_t width : {1, 2, 5, 24}) {
    for (std::int64_t count = 0; count <= width; ++count) {
      const std::int64_t rows = 4000;
      std::vector<float> scores(rows * width);
      for (float& score : scores) score = static_cast<float>(random() % 4);  // many ties
      scores[0] = std::numeric_limits<float>::quiet_NaN();
      std::vector<std::int64_t> got(rows * count);
      select_top_k(scores.data(), rows, width, count, got.data(), threads);
      for (std::int64_t row = 0; row < rows; ++row) {
        std::vector<double> values(scores.begin() + row * width, scores.begin() + (row + 1) * width);
        if (row == 0) values[0] = -std::numeric_limits<double>::infinity();
        const auto expected = reference::top_k(values, count);
        ASSERT_TRUE(std::equal(expected.begin(), expected.end(), got.begin() + row * count)) << row << " of " << width;
      }
    }
  }
}

}  // namespace
