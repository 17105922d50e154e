// Conversion by scores: its pieces against the formulas written anew in float64, and what the whole must keep.
#include "moh/convert/recipe.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "moh/base/error.h"
#include "moh/convert/importance.h"
#include "moh/convert/loss_metric.h"
#include "moh/convert/refit.h"
#include "moh/convert/router_fit.h"
#include "moh/convert/selection.h"
#include "moh/eval/perplexity.h"
#include "moh/io/npy.h"

namespace {

namespace fs = std::filesystem;
using at::Tensor;
using namespace moh::models;
using namespace moh::convert;

const at::TensorOptions kWide(at::kDouble);

// min |X W - Y|^2 + sum_i penalty_i |W_i - prior_i|^2 as one least-squares problem with rows for the penalties.
Tensor least_squares(const Tensor& x, const Tensor& y, const Tensor& penalty, const Tensor& prior) {
  const Tensor root = penalty.sqrt();
  return std::get<0>(
      at::linalg_lstsq(at::cat({x, at::diag(root)}), at::cat({y, root.unsqueeze(1) * prior}), std::nullopt, "gelsd"));
}

TEST(ConvertRidge, IsThePenalisedLeastSquares) {
  at::manual_seed(1);
  const Tensor x = at::randn({200, 7}, kWide), y = at::randn({200, 3}, kWide);
  const Tensor penalty = at::rand({7}, kWide) * 50, prior = at::randn({7, 3}, kWide);
  Ridge ridge(7, 3);
  for (std::int64_t i = 0; i < 200; i += 40) ridge.add(x.narrow(0, i, 40), y.narrow(0, i, 40));
  EXPECT_TRUE(at::allclose(ridge.solve(penalty, prior), least_squares(x, y, penalty, prior), 1e-9, 1e-11));
  EXPECT_THROW(Ridge(2, 1).solve(at::zeros({2}, kWide)), moh::Error);
}

TEST(ConvertRefit, HeadsThatRunStandInForTheOthers) {
  at::manual_seed(2);
  const std::int64_t rows = 1500, choices = 3, width = 4;
  Tensor heads = at::randn({rows, choices, width}, kWide) + 0.5;
  heads.select(1, 2).mul_(0.3).add_(heads.select(1, 0), 0.8);  // the last head repeats much of the first
  const Tensor gates = at::rand({rows, choices}, kWide).gt(0.4).to(at::kDouble);
  const Tensor projection = at::randn({5, choices * width}, kWide);
  const auto got = refit_outputs(heads, gates, projection, true);

  const Tensor gated = (heads * gates.unsqueeze(-1)).flatten(1), target = at::matmul(heads.flatten(1), projection.t());
  const Tensor phi = at::cat({gated, 1 - gates, at::ones({rows, 1}, kWide)}, 1);
  Tensor prior = at::zeros({choices * width + choices + 1, 5}, kWide), penalty = at::full({16}, 0.001 * rows, kWide);
  prior.narrow(0, 0, choices * width).copy_(projection.t());
  for (std::int64_t j = 0; j < choices; ++j) {
    const Tensor out = gates.select(1, j).eq(0);
    const Tensor mean = heads.select(1, j).index({out}).mean(0);
    prior[choices * width + j].copy_(at::matmul(projection.narrow(1, j * width, width), mean));
  }
  penalty.narrow(0, 0, choices * width).fill_(2.0 * 12 / rows * gated.square().sum(0).mean().item<double>());
  const Tensor expected = least_squares(phi, target, penalty, prior);
  EXPECT_TRUE(at::allclose(got.projection, expected.narrow(0, 0, 12).t(), 1e-8, 1e-9));
  EXPECT_TRUE(at::allclose(got.mean, expected.narrow(0, 12, 3).t(), 1e-8, 1e-9));
  EXPECT_TRUE(at::allclose(got.mean_bias, expected[15], 1e-8, 1e-9));
  EXPECT_TRUE(at::allclose(mean_outputs(heads, gates, projection).mean, prior.narrow(0, 12, 3).t(), 1e-9, 1e-10));

  const auto error = [&](const OutputWeights& w) {
    Tensor y = at::matmul(gated, w.projection.t());
    if (w.mean.defined()) y = y + at::matmul(1 - gates, w.mean.t()) + w.mean_bias;
    return (y - target).square().mean().item<double>();
  };
  const double nothing = error({projection, {}, {}}), means = error(mean_outputs(heads, gates, projection));
  EXPECT_LT(means, 0.9 * nothing);
  EXPECT_LT(error(got), 0.9 * means);
}

// Costs whose logarithm is linear in x but for noise with the mean one: the fit is the logarithm of their mean.
TEST(ConvertRouterFit, ScoresAreTheLogarithmOfTheExpectedCost) {
  at::manual_seed(3);
  const std::int64_t rows = 6000;
  const Tensor x = at::randn({rows, 10}), truth = at::randn({4, 10}, kWide) * 0.3;
  const Tensor expected = at::matmul(x.to(at::kDouble), truth.t()) - at::arange(4, kWide) * 2;
  const Tensor noise = -at::rand({rows, 4}, kWide).clamp_min(1e-12).log();  // exponential
  const RouterFit fit = fit_router_to_costs(x, (expected.exp() * noise).to(at::kFloat));
  const Tensor scores = at::matmul(x.to(at::kDouble), fit.weight.t()) + fit.bias;
  for (std::int64_t j = 0; j < 4; ++j) {
    const Tensor difference = scores.select(1, j) - expected.select(1, j);
    EXPECT_NEAR(difference.mean().item<double>(), 0, 0.1) << j;
    EXPECT_LT(difference.std().item<double>(), 0.25 * expected.select(1, j).std().item<double>()) << j;
  }
  EXPECT_THROW(fit_router_to_costs(at::full({5, 3}, std::nan("")), at::ones({5, 2})), moh::Error);
}

TEST(ConvertSelection, ThresholdsGiveTheSharesThatWereAskedFor) {
  at::manual_seed(4);
  const std::vector<Tensor> scores = {at::randn({400, 4}), at::randn({400, 4}) * 2 + 1};
  const auto shares = planned_shares(scores);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    const auto thresholds = layer_thresholds(scores[layer], shares[layer]);
    ASSERT_EQ(thresholds.size(), kShares + 1U);
    for (std::int64_t j = 0; j <= kShares; ++j) {
      const double share = scores[layer].gt(thresholds[j]).to(at::kDouble).mean().item<double>();
      EXPECT_NEAR(share, shares[layer][j], 1e-9);
    }
    EXPECT_TRUE(std::is_sorted(thresholds.rbegin(), thresholds.rend()));
  }
  for (std::int64_t j = 0; j <= kShares; ++j) {
    EXPECT_NEAR((shares[0][j] + shares[1][j]) / 2, static_cast<double>(j) / kShares, 1e-3);
  }
  EXPECT_GT(shares[1][16], shares[0][16] + 0.2);  // whose scores are larger
}

TEST(ConvertSelection, NumbersByLayerAreTheCheapest) {
  at::manual_seed(5);
  std::vector<std::vector<double>> costs;
  for (int layer = 0; layer < 3; ++layer) {
    const Tensor scores = at::randn({300, 4}, kWide);
    const Tensor worth = scores.exp() * (layer + 1) + at::rand({300, 4}, kWide);
    costs.push_back(rank_costs(scores, worth));
    for (std::int64_t rank = 0; rank < 4; ++rank) {  // token by token
      double sum = 0;
      for (std::int64_t n = 0; n < 300; ++n) {
        for (std::int64_t h = 0; h < 4; ++h) {
          if (scores[n].gt(scores[n][h]).sum().item<std::int64_t>() == rank) sum += worth[n][h].item<double>();
        }
      }
      EXPECT_NEAR(costs.back()[rank], sum / 300, 1e-9);
    }
  }
  const auto got = choices_per_layer(costs, 0.5);
  const auto lost = [&](const std::vector<std::int64_t>& counts) {
    double sum = 0;
    for (int layer = 0; layer < 3; ++layer) {
      for (std::int64_t rank = counts[layer]; rank < 4; ++rank) sum += costs[layer][rank];
    }
    return sum;
  };
  double best = 1e30;
  for (std::int64_t a = 1; a <= 4; ++a) {
    for (std::int64_t b = 1; b <= 4; ++b) {
      if (const std::int64_t c = 6 - a - b; c >= 1 && c <= 4) best = std::min(best, lost({a, b, c}));
    }
  }
  EXPECT_EQ(got[0] + got[1] + got[2], 6);
  EXPECT_NEAR(lost(got), best, 1e-12);
}

// A small model with text that it can know something about, dense.
class ConvertRecipe : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("moh_recipe_" + std::to_string(getpid()));
    fs::create_directories(folder_);
    std::vector<std::uint16_t> ids(3000);
    std::uint32_t state = 7;
    for (auto& id : ids) id = static_cast<std::uint16_t>((state = state * 1664525 + 1013904223) >> 26);
    moh::io::write_npy(folder_ + "/ids.npy", "u2", {3000}, std::as_bytes(std::span(ids)));
    text_ = moh::data::TokenStream::open(folder_ + "/ids.npy", nullptr, 64);
    options_.calibration = {.texts = {&text_}, .sequence = 60, .windows = 20, .spread = true};
    options_.activated = 0.5;
  }
  void TearDown() override { fs::remove_all(folder_); }

  static Llama small(std::int64_t heads = 4, std::int64_t kv_heads = 2) {
    LlamaConfig config = llama_preset("llm-tiny");
    config.vocab_size = 64;
    config.hidden_size = 24;
    config.intermediate_size = 40;
    config.num_hidden_layers = 3;
    config.num_attention_heads = heads;
    config.num_key_value_heads = kv_heads;
    config.head_dim = 6;
    config.initializer_range = 0.2;  // far from uniform attention
    config.tie_word_embeddings = heads == 4;
    return Llama::initialize(config, 5);
  }
  double share(const Llama& model) const {
    std::vector<Tensor> gates;
    for (std::int64_t i = 0; i < options_.calibration.windows; ++i) {
      const Tensor ids = window_ids(options_.calibration, 60, i).narrow(1, 0, 60);
      for (const auto& routing : model.forward({.ids = ids}).routing) gates.push_back(routing.gates);
    }
    return moh::ops::active_share(gates);
  }

  std::string folder_;
  moh::data::TokenStream text_;
  RecipeOptions options_;
};

// On a window of two tokens the metric knows one gradient, and the score without means is the squared derivative of the
// gate, which importance_test.cpp holds against finite differences.
TEST_F(ConvertRecipe, ScoresAreSecondOrderCosts) {
  for (const std::int64_t group : {1, 2}) {
    const Llama dense = small();
    LlamaConfig config = dense.config();
    config.moh = make_moh_config(3, 4, 0.5, std::nullopt, std::nullopt, "norm", group);
    const Calibration calibration{.texts = {&text_}, .sequence = 2, .windows = 1};
    const auto importance = measure_heads(dense, config, calibration).importance;
    LossMetric metric = new_metric(dense.config(), group);
    int steps = 0;
    add_window(metric, dense, calibration, 0, std::nullopt, [&] { ++steps; });
    EXPECT_EQ(steps, 7);
    const c10::NoGradGuard no_grad;
    Tensor hidden = dense.embed(window_ids(calibration, 2, 0).narrow(1, 0, 2));
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      const auto output = dense.forward({.layers = LayerRange{layer, 1, hidden}, .keep_heads = true});
      const Tensor heads = output.heads[0].reshape({2, 4 / group, -1});
      const std::string name = "model.layers." + std::to_string(layer) + ".self_attn.o_proj.weight";
      Tensor projection;
      for (const auto& [key, tensor] : dense.parameters()) {
        if (key == name) projection = tensor;
      }
      const Tensor scores = head_scores(metric, layer, heads, projection, /*centred=*/false);
      EXPECT_TRUE(at::allclose(scores[1], importance[layer][1], 1e-3, 1e-7)) << layer;
      const Tensor centred = head_scores(metric, layer, heads, projection, /*centred=*/true);
      const Tensor moved = (heads[1] - heads.mean(0)).to(at::kDouble);
      const Tensor columns = projection.to(at::kDouble).reshape({-1, 4 / group, heads.size(2)});
      const Tensor reached = at::einsum("cw,kcw->ck", {moved, columns});
      const Tensor expected = at::einsum("ck,kl,cl->c", {reached, metric.second[layer].to(at::kDouble), reached});
      EXPECT_TRUE(at::allclose(centred[1].to(at::kDouble), expected, 1e-3, 1e-7)) << layer;
      hidden = output.range_hidden;
    }
    EXPECT_TRUE(at::allclose(dense.logits(dense.final_norm(hidden)),
                             dense.forward({.ids = window_ids(calibration, 2, 0).narrow(1, 0, 2)}).logits));
  }
}

// Against the definition: every gate turned over, one at a time.
TEST(ConvertLossMetric, CostsAmongOthersAreTheDifferenceThatAGateMakes) {
  at::manual_seed(6);
  const std::int64_t rows = 1030, choices = 3, width = 4, hidden = 5;
  const Tensor heads = at::randn({rows, choices, width}, kWide) + 0.3;
  const Tensor gates = at::rand({rows, choices}, kWide).gt(0.4).to(at::kDouble);
  const Tensor projection = at::randn({hidden, choices * width}, kWide), half = at::randn({hidden, hidden});
  const Tensor product = at::matmul(half, half.t());
  const LossMetric metric{.second = {product + product.t()}, .windows = 1, .tokens = 8, .scored = 7};
  const Tensor loss = metric.second[0].to(at::kDouble) / 7;
  for (const bool with_means : {true, false}) {
    const OutputWeights outputs = refit_outputs(heads, gates, projection, with_means);
    const auto cost = [&](const Tensor& some) {
      Tensor left = at::matmul(heads.flatten(1), projection.t()) -
                    at::matmul((heads * some.unsqueeze(-1)).flatten(1), outputs.projection.t());
      if (with_means) left = left - at::matmul(1 - some, outputs.mean.t()) - outputs.mean_bias;
      return (at::matmul(left, loss) * left).sum(-1);
    };
    const Tensor got = costs_among_others(metric, 0, heads, gates, projection, outputs);
    for (std::int64_t j = 0; j < choices; ++j) {
      Tensor with = gates.clone(), without = gates.clone();
      with.select(1, j).fill_(1);
      without.select(1, j).fill_(0);
      EXPECT_TRUE(at::allclose(got.select(1, j), cost(without) - cost(with), 1e-6, 1e-8)) << j;
    }
    EXPECT_TRUE(got.lt(0).any().item<bool>());
  }
}

TEST_F(ConvertRecipe, ShareIsAsAskedOnTheCalibrationText) {
  const Llama dense = small();
  for (const char* select : {"head", "kv-group"}) {
    options_.select = select;
    Llama model = convert_by_scores(dense, options_);
    EXPECT_NEAR(share(model), 0.5, 0.01) << select;
    EXPECT_DOUBLE_EQ(model.config().activated_share(), 0.5);
    set_activated_share(model.mutable_config(), 1.0);
    EXPECT_DOUBLE_EQ(share(model), 1.0);
    set_activated_share(model.mutable_config(), 0.75);
    EXPECT_NEAR(share(model), 0.75, 0.1);  // later layers see another stream than the one that was measured
  }
  options_.select = "head";
  options_.choose = "top-k";
  const Llama counted = convert_by_scores(dense, options_);
  EXPECT_DOUBLE_EQ(share(counted), 0.5);
  options_.budget = "uniform";
  const Llama uniform = convert_by_scores(dense, options_);
  EXPECT_EQ(uniform.config().moh->top_k, (std::vector<std::int64_t>{2, 2, 2}));
}

TEST_F(ConvertRecipe, EveryHeadIsTheDenseModel) {
  options_.activated = 1;
  const Llama dense = small();
  const Llama model = convert_by_scores(dense, options_);
  const Tensor ids = text_.windows({100}, 40);
  const Tensor expected = dense.forward({.ids = ids}).logits;
  EXPECT_LT((model.forward({.ids = ids}).logits - expected).abs().max().item<double>(),
            1e-2 * expected.abs().max().item<double>());
}

TEST_F(ConvertRecipe, EveryStepBringsTheLayersNearerToTheDenseOnes) {
  const Llama dense = small();
  const auto distance = [&](bool means, bool refit) {
    options_.mean_heads = means;
    options_.refit = refit;
    const Llama model = convert_by_scores(dense, options_);
    const c10::NoGradGuard no_grad;
    double sum = 0;
    for (std::int64_t i = 0; i < 8; ++i) {
      const Tensor ids = text_.windows({i * 300 + 17}, 60).narrow(1, 0, 60);
      sum += (model.forward({.ids = ids}).last_hidden - dense.forward({.ids = ids}).last_hidden)
                 .square()
                 .mean()
                 .item<double>();
    }
    return sum;
  };
  const double plain = distance(false, false), means = distance(true, false), best = distance(true, true);
  EXPECT_LT(means, plain);
  EXPECT_LT(best, means);
}

TEST_F(ConvertRecipe, DecodingAndBatchesAreTheFullForward) {
  for (const char* choose : {"threshold", "top-k"}) {
    for (const bool weighted : {false, true}) {
      options_.choose = choose;
      options_.weighted = weighted;
      options_.select = "kv-group";
      options_.leading_tokens = 2;
      const Llama model = convert_by_scores(small(6, 3), options_);
      const c10::NoGradGuard no_grad;
      const Tensor ids = text_.windows({50, 900}, 19);
      const auto output = model.forward({.ids = ids});
      const Tensor expected = output.logits;
      bool skips = false;
      for (const auto& routing : output.routing) {
        const Tensor selected = routing.gates.ne(0);
        EXPECT_TRUE(selected.narrow(1, 0, 2).all().item<bool>());
        skips |= !selected.narrow(1, 2, 18).all().item<bool>();
      }
      EXPECT_TRUE(skips);
      auto cache = model.make_cache(2, 20);
      std::vector<Tensor> logits = {model.forward({.ids = ids.narrow(1, 0, 7), .cache = &cache}).logits};
      for (std::int64_t t = 7; t < 20; ++t) {
        logits.push_back(model.forward({.ids = ids.narrow(1, t, 1), .cache = &cache}).logits);
      }
      EXPECT_TRUE(at::allclose(at::cat(logits, 1), expected, 1e-4, 1e-5)) << choose << " " << weighted;
    }
  }
}

TEST_F(ConvertRecipe, AStoppedConversionGoesOnToTheSameBits) {
  const Llama dense = small();
  const Llama whole = convert_by_scores(dense, options_);
  options_.journal = folder_ + "/journal";
  options_.statistics = folder_ + "/statistics";
  int stops = 0;
  for (int limit : {3, 100, 230, 260, 300, 1 << 30}) {  // in every pass; later ones redo what no entry holds
    int asked = 0;
    options_.stop = [&] { return ++asked > limit; };
    try {
      const Llama again = convert_by_scores(dense, options_);
      for (std::size_t i = 0; i < whole.parameters().size(); ++i) {
        EXPECT_TRUE(at::equal(again.parameters()[i].second, whole.parameters()[i].second))
            << whole.parameters()[i].first;
      }
      EXPECT_EQ(again.config().moh->own, whole.config().moh->own);
    } catch (const Stopped&) {
      ++stops;
    }
  }
  EXPECT_GE(stops, 3);
  options_.stop = {};
  options_.activated = 0.75;
  EXPECT_THROW(convert_by_scores(dense, options_), moh::Error);  // the journal is of another conversion
}

TEST_F(ConvertRecipe, TuningReachesRouterMeansAndProjection) {
  options_.straight_through = "selected";
  options_.choose = "top-k";
  options_.budget = "uniform";  // every layer leaves heads out
  Llama model = convert_by_scores(small(), options_);
  moh::io::NamedTensors copies;
  for (const auto& [name, tensor] : model.parameters()) copies.emplace_back(name, tensor.clone());
  model = Llama(model.config(), copies);
  model.set_requires_grad(true);
  const Tensor ids = text_.windows({10}, 40);
  const auto output = model.forward({.ids = ids.narrow(1, 0, 40)});
  const Tensor loss = at::cross_entropy_loss(output.logits.flatten(0, 1), ids.narrow(1, 1, 40).flatten());
  loss.backward();
  for (const auto& [name, tensor] : model.parameters()) {
    ASSERT_TRUE(tensor.grad().defined()) << name;
    EXPECT_GT(tensor.grad().abs().max().item<double>(), 0) << name;
  }
}

}  // namespace
