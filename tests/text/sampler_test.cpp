#include "moh/text/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "tests/base/error_of.h"

namespace moh::text {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The probabilities that the options define, by sorting everything.
std::map<std::int64_t, double> oracle(std::vector<double> z, const SamplingOptions& o,
                                      const std::vector<std::int64_t>& prompt, const std::vector<std::int64_t>& text) {
  for (std::size_t i = 0; i < z.size(); ++i) {
    const auto id = static_cast<std::int64_t>(i);
    const auto in_text = std::count(text.begin(), text.end(), id);
    if (in_text > 0 || std::count(prompt.begin(), prompt.end(), id) > 0)
      z[i] = z[i] > 0 ? z[i] / o.repetition_penalty : z[i] * o.repetition_penalty;
    z[i] -= o.frequency_penalty * static_cast<double>(in_text) + (in_text > 0 ? o.presence_penalty : 0);
    for (const auto& [biased, bias] : o.logit_bias)
      if (biased == id) z[i] += bias;
  }
  std::vector<std::size_t> order(z.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return z[a] > z[b]; });
  if (o.temperature == 0) return {{static_cast<std::int64_t>(order[0]), 1.0}};
  if (o.top_k > 0) order.resize(std::min<std::size_t>(order.size(), static_cast<std::size_t>(o.top_k)));
  double total = 0, reached = 0;
  const auto weight = [&](std::size_t i) { return std::exp((z[i] - z[order[0]]) / o.temperature); };
  for (const std::size_t i : order) total += weight(i);
  std::map<std::int64_t, double> probability;
  for (const std::size_t i : order) {
    if (reached >= o.top_p * total) break;
    reached += weight(i);
    if (weight(i) > 0) probability[static_cast<std::int64_t>(i)] = weight(i);
  }
  for (auto& item : probability) item.second /= reached;
  return probability;
}

std::vector<double> random_logits(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0, 2);
  std::vector<double> logits(size);
  for (double& logit : logits) logit = std::round(normal(random) * 8) / 8;  // with ties
  return logits;
}

TEST(Sampler, FollowsItsProbabilities) {
  const std::vector<std::int64_t> prompt = {0, 3, 3};
  const std::vector<SamplingOptions> all = {
      {.temperature = 0.8},
      {.temperature = 1.0, .top_k = 3},
      {.temperature = 1.3, .top_p = 0.7},
      {.temperature = 1.0, .top_k = 5, .top_p = 0.6},
      {.temperature = 1.0, .top_k = 100, .top_p = 0.95},
      {.temperature = 0.9, .repetition_penalty = 1.7},
      {.temperature = 0.9, .frequency_penalty = 0.6, .presence_penalty = 0.4},
      {.temperature = 1.0,
       .top_p = 0.9,
       .repetition_penalty = 0.8,
       .frequency_penalty = -0.3,
       .logit_bias = {{2, 1.5}, {5, -kInfinity}}},
  };
  const std::vector<double> logits = random_logits(12, 3);
  constexpr int kDraws = 2000, kLength = 3;
  for (const SamplingOptions& given : all) {
    std::map<std::vector<std::int64_t>, std::map<std::int64_t, int>> seen;  // after each text: what followed
    for (int draw = 0; draw < kDraws; ++draw) {
      SamplingOptions options = given;
      options.seed = static_cast<std::uint64_t>(draw);
      Sampler sampler(options, prompt);
      std::vector<std::int64_t> text;
      for (int i = 0; i < kLength; ++i) {
        const std::int64_t id = sampler(logits);
        ++seen[text][id];
        text.push_back(id);
      }
    }
    for (const auto& [text, followers] : seen) {
      const auto probability = oracle(logits, given, prompt, text);
      double count = 0;
      for (const auto& item : followers) {
        EXPECT_TRUE(probability.contains(item.first)) << item.first;
        count += item.second;
      }
      if (count < 200) continue;
      for (const auto& [id, p] : probability) {
        const auto found = followers.find(id);
        const double share = found == followers.end() ? 0 : found->second / count;
        EXPECT_NEAR(share, p, 5 * std::sqrt(p * (1 - p) / count) + 1e-9) << "id " << id;
      }
    }
  }
}

// Partial selection picks what sorting the whole vocabulary did, with the same random numbers.
TEST(Sampler, PicksWhatSortingEverythingPicks) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    const std::size_t size = 1 + seed * seed * 3;
    const std::vector<double> logits = random_logits(size, seed);
    for (SamplingOptions options : {SamplingOptions{.temperature = 1},
                                    {.temperature = 2, .top_p = 0.99},
                                    {.temperature = 0.7, .top_k = 40},
                                    {.temperature = 1, .top_k = 100, .top_p = 0.8}}) {
      options.seed = seed;
      Sampler sampler(options);
      std::mt19937_64 random(seed);
      const bool sorts = (options.top_k > 0 && options.top_k < static_cast<std::int64_t>(size)) || options.top_p < 1;
      std::vector<std::size_t> order(size);
      std::iota(order.begin(), order.end(), 0);
      if (sorts) std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
      const auto probability = oracle(logits, options, {}, {});
      for (int draw = 0; draw < 5; ++draw) {
        double left = static_cast<double>(random() >> 11) * 0x1.0p-53;
        std::int64_t want = -1;
        for (const std::size_t id : order) {
          const auto found = probability.find(static_cast<std::int64_t>(id));
          if (found == probability.end()) continue;
          want = found->first;
          left -= found->second;
          if (left < 0) break;
        }
        EXPECT_EQ(sampler(logits), want) << "size " << size;
      }
    }
  }
}

TEST(Sampler, GreedyAndTies) {
  EXPECT_EQ(Sampler({})(std::vector<double>{5, 7, 7}), 1) << "the lower id";
  EXPECT_EQ(Sampler({})(std::vector<float>{5, 7, 8}), 2);
  EXPECT_EQ(Sampler({.logit_bias = {{1, -kInfinity}}})(std::vector<double>{5, 7, 6}), 2);
  Sampler repeats({.presence_penalty = 3});
  EXPECT_EQ(repeats(std::vector<double>{5, 7, 6}), 1);
  EXPECT_EQ(repeats(std::vector<double>{5, 7, 6}), 2);
  EXPECT_EQ(repeats(std::vector<double>{5, 7, 6}), 0);
  EXPECT_EQ(repeats(std::vector<double>{5, 7, 6}), 1);
}

TEST(Sampler, Refuses) {
  const double nan = std::nan("");
  const auto fault = [](const SamplingOptions& options, std::vector<double> logits = {1, 2}) {
    return test::error_of([&] {
      Sampler sampler(options);
      sampler(logits);
    });
  };
  EXPECT_EQ(fault({}), "");
  EXPECT_NE(fault({.temperature = -1}).find("temperature"), std::string::npos);
  EXPECT_NE(fault({.top_k = -1}).find("top_k"), std::string::npos);
  EXPECT_NE(fault({.top_p = 0}).find("top_p"), std::string::npos);
  EXPECT_NE(fault({.top_p = nan}).find("top_p"), std::string::npos);
  EXPECT_NE(fault({.repetition_penalty = 0}).find("repetition_penalty"), std::string::npos);
  EXPECT_NE(fault({.frequency_penalty = nan}).find("frequency_penalty"), std::string::npos);
  EXPECT_NE(fault({.presence_penalty = kInfinity}).find("presence_penalty"), std::string::npos);
  EXPECT_NE(fault({.logit_bias = {{2, 1.0}}}).find("logit_bias of token 2"), std::string::npos);
  EXPECT_NE(fault({.logit_bias = {{0, nan}}}).find("logit_bias"), std::string::npos);
  EXPECT_NE(fault({.logit_bias = {{0, -kInfinity}, {1, -kInfinity}}}).find("no token is allowed"), std::string::npos);
  EXPECT_NE(fault({}, {1, nan}).find("NaN"), std::string::npos);
  EXPECT_NE(fault({}, {1, kInfinity}).find("infinite"), std::string::npos);
}

}  // namespace
}  // namespace moh::text
