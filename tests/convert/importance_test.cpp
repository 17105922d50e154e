// What conversion measures, against finite differences, brute force and facts.
#include "moh/convert/importance.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "moh/base/error.h"
#include "moh/convert/budget.h"
#include "moh/eval/perplexity.h"
#include "moh/io/npy.h"

namespace {

namespace fs = std::filesystem;
using at::Tensor;
using namespace moh::models;
using namespace moh::convert;

class Conversion : public testing::Test {
 protected:
  void SetUp() override {
    file_ = fs::temp_directory_path() / ("moh_conversion_" + std::to_string(getpid()) + ".npy");
    std::vector<std::uint16_t> ids(2000);
    std::uint32_t state = 7;
    for (auto& id : ids) id = static_cast<std::uint16_t>((state = state * 1664525 + 1013904223) >> 26);
    moh::io::write_npy(file_, "u2", {2000}, std::as_bytes(std::span(ids)));
    text_ = moh::data::TokenStream::open(file_, nullptr, 64);
  }
  void TearDown() override { fs::remove(file_); }

  static LlamaConfig small(std::int64_t heads, std::int64_t kv_heads, std::int64_t layers = 2) {
    LlamaConfig config = llama_preset("llm-tiny");
    config.vocab_size = 64;
    config.hidden_size = 24;
    config.intermediate_size = 40;
    config.num_hidden_layers = layers;
    config.num_attention_heads = heads;
    config.num_key_value_heads = kv_heads;
    config.head_dim = 6;
    config.initializer_range = 0.2;  // far from uniform attention
    return config;
  }
  static Tensor parameter(const Llama& model, const std::string& name) {
    for (const auto& [key, tensor] : model.parameters()) {
      if (key == name) return tensor;
    }
    throw moh::Error("no " + name);
  }

  std::string file_;
  moh::data::TokenStream text_;
};

// A gate of one token in a window of one token is the size of the head's columns in the output projection.
TEST_F(Conversion, ImportanceIsTheSquaredDerivativeOfTheGate) {
  for (const std::int64_t group : {1, 2}) {
    LlamaConfig config = small(4, 2);
    const Llama dense = Llama::initialize(config, 1);
    config.moh = make_moh_config(2, 4, 0.5, std::nullopt, std::nullopt, "norm", group);
    const auto statistics = measure_heads(dense, config, {.texts = {&text_}, .sequence = 1, .windows = 3});
    ASSERT_EQ(statistics.importance.size(), 2U);
    ASSERT_EQ(statistics.importance[0].sizes(), (at::IntArrayRef{3, 4 / group}));
    const c10::NoGradGuard no_grad;
    for (std::int64_t layer = 0; layer < 2; ++layer) {
      const Tensor o = parameter(dense, "model.layers." + std::to_string(layer) + ".self_attn.o_proj.weight");
      for (std::int64_t choice = 0; choice < 4 / group; ++choice) {
        Tensor columns = o.narrow(1, choice * group * 6, group * 6);
        const Tensor kept = columns.clone();
        for (std::int64_t window = 0; window < 3; ++window) {
          double losses[2];
          constexpr double kStep = 2e-2;
          for (const int side : {0, 1}) {
            columns.copy_(kept * (side == 0 ? 1 - kStep : 1 + kStep));
            const Tensor logits = dense.forward({.ids = text_.windows({window}, 1).narrow(1, 0, 1)}).logits.flatten();
            losses[side] = -at::log_softmax(logits.to(at::kDouble), 0)[text_[window + 1]].item<double>();
          }
          columns.copy_(kept);
          const double expected = std::pow((losses[1] - losses[0]) / (2 * kStep), 2);
          EXPECT_NEAR(statistics.importance[layer][window][choice].item<double>(), expected, 1e-5 + 0.02 * expected);
        }
      }
    }
  }
}

TEST_F(Conversion, OrderFallsWithImportanceAndKeepsGroupsTogether) {
  HeadStatistics statistics;
  statistics.importance = {at::tensor({1.0, 5.0, 3.0, 0.0, 3.0, 5.0}).reshape({2, 3})};  // means 0.5, 4, 4
  EXPECT_EQ(importance_order(statistics, 1), (std::vector<std::vector<std::int64_t>>{{1, 2, 0}}));
  EXPECT_EQ(importance_order(statistics, 2), (std::vector<std::vector<std::int64_t>>{{2, 3, 4, 5, 0, 1}}));
}

TEST_F(Conversion, CalibratedRouterLeavesAttentionAndFollowsImportance) {
  for (const std::int64_t group : {1, 2}) {
    LlamaConfig config = small(8, 4);
    config.qkv_bias = config.output_bias = true;
    Llama dense = Llama::initialize(config, 2);
    for (const auto& [name, tensor] : dense.parameters()) {
      if (name.ends_with(".bias")) tensor.normal_(0.0, 0.3);
    }
    config.moh = make_moh_config(2, 8, 0.5, std::nullopt, std::nullopt, "norm", group);
    const Tensor ids = text_.windows({100}, 40);
    const Tensor before = dense.forward({.ids = ids}).logits;
    const Calibration calibration{.texts = {&text_}, .sequence = 64, .windows = 8};
    // Cross-entropy between each token's shares of importance and softmax(norm / deviation), from the queries anew.
    const auto cross_entropy = [&](const HeadStatistics& statistics, std::int64_t layer) {
      const Tensor target = statistics.importance[layer].clamp_max(50 * statistics.importance[layer].mean());
      const Tensor squares = statistics.query_pairs[layer].sum(-1);
      const Tensor norms = squares.reshape({squares.size(0), -1, group}).sum(-1).sqrt();
      return (-(target * at::log_softmax(norms / norms.std(-1, true, true), -1)).sum() / target.sum()).item<double>();
    };
    const auto first = measure_heads(dense, config, calibration);
    auto scaled = first;
    calibrate_router(dense, config, scaled);
    EXPECT_LE((dense.forward({.ids = ids}).logits - before).abs().max().item<double>(),
              1e-4 * before.abs().max().item<double>());
    const auto second = measure_heads(dense, config, calibration);
    for (std::int64_t layer = 0; layer < 2; ++layer) {
      EXPECT_TRUE(at::allclose(first.importance[layer], second.importance[layer], 2e-2, 1e-4));  // the same function
      EXPECT_TRUE(at::allclose(scaled.query_pairs[layer], second.query_pairs[layer], 1e-3, 1e-5));
      EXPECT_LT(cross_entropy(second, layer), cross_entropy(first, layer) - 1e-3) << "group " << group;
    }
  }
}

TEST_F(Conversion, FittedRouterFindsTheHeadsThatMatter) {
  LlamaConfig config = small(8, 8, 1);
  config.moh = make_moh_config(1, 8, 0.5, 0.25, std::nullopt, "two-stage");
  config.moh->head_order = {{5, 1, 7, 0, 2, 3, 4, 6}};
  at::manual_seed(4);
  HeadStatistics statistics;
  const Tensor truth = at::randn({8, 24});
  statistics.inputs = {at::randn({3000, 24})};
  statistics.importance = {at::matmul(statistics.inputs[0], truth.t()).exp()};
  const Tensor wg = fit_router(config, 0, statistics);
  ASSERT_EQ(wg.sizes(), (at::IntArrayRef{6, 24}));
  const Tensor routed = at::tensor({7, 0, 2, 3, 4, 6}, at::kLong);
  const Tensor x = at::randn({1000, 24});
  const Tensor chosen = at::matmul(x, wg.t()).argmax(-1);
  const Tensor best = at::matmul(x, truth.t()).index_select(1, routed).argmax(-1);
  EXPECT_GT(chosen.eq(best).to(at::kFloat).mean().item<double>(), 0.85);
  EXPECT_NEAR(at::matmul(x, wg.t()).std(1).mean().item<double>(), 0.1, 0.02);
}

TEST_F(Conversion, BudgetIsTheBestSumOfWhatLayersLose) {
  LlamaConfig config = small(4, 4, 3);
  Llama model = Llama::initialize(config, 6);
  config.moh = make_moh_config(3, 4, 0.5, std::nullopt, std::nullopt, "norm");
  model = Llama(config, model.parameters());
  const Calibration calibration{.texts = {&text_}, .sequence = 50, .windows = 6};
  const auto division = [](std::int64_t active) { return active / 2; };
  budget_by_measurement(model, 0.5, division, calibration);
  const auto& moh = *model.config().moh;
  EXPECT_DOUBLE_EQ(model.config().activated_share(), 0.5);
  for (std::int64_t layer = 0; layer < 3; ++layer)
    EXPECT_EQ(moh.shared_heads[layer], (moh.shared_heads[layer] + moh.top_k[layer]) / 2);

  // Every division of 6 heads over 3 layers, by losses that eval measures.
  std::vector<std::vector<double>> loss(3, std::vector<double>(5));
  for (std::int64_t layer = 0; layer < 3; ++layer) {
    for (std::int64_t active = 1; active <= 4; ++active) {
      LlamaConfig one = config;
      for (std::int64_t i = 0; i < 3; ++i) {
        const std::int64_t count = i == layer ? active : 4;
        one.moh->shared_heads[i] = count / 2;
        one.moh->top_k[i] = count - count / 2;
      }
      loss[layer][active] =
          moh::eval::perplexity(Llama(one, model.parameters()), text_, {.sequence = 50, .max_windows = 6}).nll;
    }
  }
  const auto sum = [&](std::int64_t a, std::int64_t b, std::int64_t c) { return loss[0][a] + loss[1][b] + loss[2][c]; };
  double best = 1e9;
  for (std::int64_t a = 1; a <= 4; ++a) {
    for (std::int64_t b = 1; b <= 4; ++b) {
      if (const std::int64_t c = 6 - a - b; c >= 1 && c <= 4) best = std::min(best, sum(a, b, c));
    }
  }
  const auto active = [&](std::int64_t layer) { return moh.shared_heads[layer] + moh.top_k[layer]; };
  EXPECT_NEAR(sum(active(0), active(1), active(2)), best, 1e-4);
}

TEST_F(Conversion, CalibrationSaysWhatIsWrong) {
  LlamaConfig config = small(4, 2);
  const Llama dense = Llama::initialize(config, 1);
  config.moh = make_moh_config(2, 4, 0.5, std::nullopt, std::nullopt, "norm");
  EXPECT_THROW(measure_heads(dense, config, {.texts = {&text_}, .sequence = 1 << 20}), moh::Error);
  EXPECT_THROW(measure_heads(dense, config, {.texts = {&text_}, .windows = 0}), moh::Error);
  const moh::data::TokenStream none;
  EXPECT_THROW(measure_heads(dense, config, {.texts = {&none}}), moh::Error);
  parameter(dense, "model.layers.0.self_attn.o_proj.weight").fill_(std::nan(""));
  try {
    measure_heads(dense, config, {.texts = {&text_}, .sequence = 8, .windows = 1});
    FAIL() << "NaN weights must be an error";
  } catch (const moh::Error& error) {
    EXPECT_NE(std::string(error.what()).find("NaN"), std::string::npos);
  }
}

}  // namespace
