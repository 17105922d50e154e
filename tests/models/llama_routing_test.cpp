// Order of heads, choice by KV group, K at run time: against the formula in scalar float64 and facts of the model.
#include "moh/models/llama_routing.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "moh/base/error.h"
#include "moh/models/llama.h"

namespace {

using at::Tensor;
using namespace moh::models;

LlamaConfig small(std::int64_t heads, std::int64_t kv_heads) {
  LlamaConfig config = llama_preset("llm-tiny");
  config.vocab_size = 50;
  config.hidden_size = 24;
  config.intermediate_size = 40;
  config.num_hidden_layers = 2;
  config.num_attention_heads = heads;
  config.num_key_value_heads = kv_heads;
  config.head_dim = 6;
  return config;
}

Tensor some_ids(std::int64_t batch, std::int64_t tokens) {
  at::manual_seed(3);
  return at::randint(50, {batch, tokens}, at::TensorOptions(at::kLong));
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const moh::Error& error) {
    return error.what();
  }
  return "";
}

// A layer's router on queries of the test's own.
moh::ops::Routing route_layer(const LlamaConfig& config, std::int64_t layer, const Tensor& x, const Tensor& query) {
  const auto order = choice_order(config, layer, at::kCPU);
  const auto router = moh::layers::make_router(config.moh->router, [](const std::string&) { return std::nullopt; });
  return router->route(router_setting(config, layer, order ? &*order : nullptr), x, query);
}

// Rows (or columns) of a projection, in blocks of one head, put into another order.
Tensor permuted(const Tensor& weight, std::int64_t dim, std::int64_t head_dim, const std::vector<std::int64_t>& order) {
  std::vector<Tensor> blocks;
  for (const std::int64_t head : order) blocks.push_back(weight.narrow(dim, head * head_dim, head_dim));
  return at::cat(blocks, dim);
}

TEST(HeadOrder, IsTheModelWhoseHeadsAreRenumbered) {
  const c10::NoGradGuard no_grad;
  for (const std::string router : {"norm", "two-stage"}) {
    LlamaConfig config = small(4, 4);
    config.moh = make_moh_config(2, 4, 0.75, 0.25, std::nullopt, router);
    config.moh->gates = moh::layers::GateForm::kAuthors;
    const std::vector<std::vector<std::int64_t>> order = {{2, 0, 3, 1}, {1, 3, 2, 0}};
    Llama renumbered = Llama::initialize(config, 5);
    config.moh->head_order = order;
    // renumbered's head i is ordered's head order[i], so ordered's weights are renumbered's put back.
    auto tensors = renumbered.parameters();
    for (auto& [name, tensor] : tensors) {
      for (std::int64_t layer = 0; layer < 2; ++layer) {
        if (name.find("layers." + std::to_string(layer) + ".") == std::string::npos) continue;
        std::vector<std::int64_t> back(4);
        for (std::int64_t i = 0; i < 4; ++i) back[order[layer][i]] = i;
        for (const char* part : {"q_proj", "k_proj", "v_proj"}) {
          if (name.find(part) != std::string::npos) tensor = permuted(tensor, 0, config.head_dim, back);
        }
        if (name.find("o_proj") != std::string::npos) tensor = permuted(tensor, 1, config.head_dim, back);
      }
    }
    const Llama ordered(config, tensors);
    const Tensor ids = some_ids(2, 17);
    const auto a = renumbered.forward({.ids = ids}), b = ordered.forward({.ids = ids});
    EXPECT_LE((a.logits - b.logits).abs().max().item<double>(), 2e-5) << router;
    for (std::int64_t layer = 0; layer < 2; ++layer) {
      EXPECT_TRUE(at::equal(a.routing[layer].indices, b.routing[layer].indices)) << router;
      for (std::int64_t i = 0; i < 4; ++i) {
        EXPECT_TRUE(
            at::allclose(a.routing[layer].gates.select(-1, i), b.routing[layer].gates.select(-1, order[layer][i])));
        EXPECT_EQ(config.is_shared(layer, order[layer][i]), i < 1);
      }
    }
  }
}

TEST(KvGroups, ScoreIsTheNormOfAllQueriesOfTheGroup) {
  at::manual_seed(8);
  // 12 heads in 4 groups of 3; 1 group shared, 2 of 3 routed; and 2 routed groups, where the mean divides.
  for (const std::int64_t shared : {1, 2, 0}) {
    LlamaConfig config = small(12, 4);
    config.moh = make_moh_config(2, 12, 0.75, shared / 4.0, std::nullopt, "norm", 3);
    ASSERT_EQ(config.moh->select, moh::layers::SelectBy::kKvGroup);
    ASSERT_EQ(config.shared_heads(0), 3 * shared);
    config.moh->head_order = std::vector<std::vector<std::int64_t>>(2, {6, 7, 8, 0, 1, 2, 9, 10, 11, 3, 4, 5});
    const std::vector<std::int64_t> groups = {2, 0, 3, 1};
    check_llama_config(config, "test");
    const Tensor query = at::randn({2, 5, 12, 6}), x = at::randn({2, 5, 24});
    const auto routing = route_layer(config, 1, x, query);
    ASSERT_EQ(routing.gates.sizes(), (at::IntArrayRef{2, 5, 12}));
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t t = 0; t < 5; ++t) {
        std::vector<double> norms;
        for (std::size_t i = shared; i < groups.size(); ++i) {
          double squares = 0;
          for (std::int64_t head = 3 * groups[i]; head < 3 * groups[i] + 3; ++head) {
            for (std::int64_t d = 0; d < 6; ++d) squares += std::pow(query[b][t][head][d].item<double>(), 2);
          }
          norms.push_back(std::sqrt(squares));
        }
        const double count = static_cast<double>(norms.size());
        const double mean = std::accumulate(norms.begin(), norms.end(), 0.0) / count;
        double variance = 0;
        for (const double norm : norms) variance += (norm - mean) * (norm - mean) / (count - 1);
        const double divisor = norms.size() <= 2 ? mean : std::sqrt(variance);
        double total = 0;
        for (const double norm : norms) total += std::exp(norm / divisor);
        std::vector<std::size_t> best(norms.size());
        std::iota(best.begin(), best.end(), 0);
        std::sort(best.begin(), best.end(), [&](auto i, auto j) { return norms[i] > norms[j]; });
        std::vector<double> gates(12, 0.0);
        const auto open = [&](std::int64_t group) { std::fill_n(gates.begin() + 3 * group, 3, 1.0); };
        for (std::int64_t i = 0; i < shared; ++i) open(groups[i]);
        for (std::int64_t i = 0; i < 3 - shared; ++i) open(groups[shared + best[i]]);
        for (std::int64_t head = 0; head < 12; ++head) EXPECT_EQ(routing.gates[b][t][head].item<double>(), gates[head]);
        for (std::size_t i = 0; i < norms.size(); ++i) {
          EXPECT_NEAR(routing.probabilities[b][t][static_cast<std::int64_t>(i)].item<double>(),
                      std::exp(norms[i] / divisor) / total, 1e-5);
        }
      }
    }
  }
}

TEST(KvGroups, TwoRoutedGroupsStillTeachTheRouter) {
  LlamaConfig config = small(4, 2);
  config.moh = make_moh_config(2, 4, 0.5, 0.0, std::nullopt, "norm", 2);
  at::manual_seed(9);
  const Tensor query = at::randn({1, 6, 4, 6}).set_requires_grad(true);
  const auto routing = route_layer(config, 0, at::zeros({1, 6, 24}), query);
  (routing.gates * at::randn({1, 6, 4})).sum().backward();
  EXPECT_GT(query.grad().abs().max().item<double>(), 1e-3);
}

TEST(KvGroups, AllGroupsOnIsTheDenseModelAndTwoStageRoutersHaveARowEach) {
  const c10::NoGradGuard no_grad;
  LlamaConfig config = small(6, 3);
  const Llama dense = Llama::initialize(config, 3);
  config.moh = make_moh_config(2, 6, 1.0, 1.0 / 3, std::nullopt, "norm", 2);
  const Llama moh(config, dense.parameters());
  const Tensor ids = some_ids(1, 20);
  EXPECT_TRUE(at::equal(dense.forward({.ids = ids}).logits, moh.forward({.ids = ids}).logits));

  config.moh = make_moh_config(2, 6, 2.0 / 3, 1.0 / 3, std::nullopt, "two-stage", 2);
  const Llama trained = Llama::initialize(config, 4);
  for (const auto& [name, tensor] : trained.parameters()) {
    if (name.ends_with(".wg.weight")) {
      EXPECT_EQ(tensor.sizes(), (at::IntArrayRef{2, 24}));
    }
  }
  const auto routing = trained.forward({.ids = ids}).routing[1];
  EXPECT_EQ(routing.gates.ne(0).sum(-1).min().item<std::int64_t>(), 4);
  EXPECT_TRUE(at::equal(routing.gates.select(-1, 2), routing.gates.select(-1, 3)));
}

TEST(RunTimeHeads, ChangeHowManyHeadsATokenUses) {
  const c10::NoGradGuard no_grad;
  LlamaConfig config = small(8, 4);
  config.moh = make_moh_config(2, 8, 0.5, 0.25, std::nullopt, "norm");
  Llama model = Llama::initialize(config, 6);
  const auto active = [&] {
    const auto routing = model.forward({.ids = some_ids(1, 9)}).routing;
    return std::pair(routing[0].gates.ne(0).sum(-1).max().item<std::int64_t>(),
                     routing[1].gates.ne(0).sum(-1).min().item<std::int64_t>());
  };
  set_top_k(model.mutable_config(), 5);
  EXPECT_EQ(active(), std::pair(std::int64_t{7}, std::int64_t{7}));
  set_top_k(model.mutable_config(), 0);
  EXPECT_EQ(active(), std::pair(std::int64_t{2}, std::int64_t{2}));
  set_top_k(model.mutable_config(), 8);  // more than there are
  EXPECT_DOUBLE_EQ(model.config().activated_share(), 1.0);

  // Layers of 4 and 6 active heads: half-way to all heads each goes half its way.
  LlamaConfig uneven = config;
  uneven.moh->top_k = {2, 4};
  LlamaConfig more = uneven;
  set_activated_share(more, (10.0 / 16 + 1) / 2);
  EXPECT_EQ(more.moh->top_k, (std::vector<std::int64_t>{4, 5}));
  LlamaConfig same = uneven;
  set_activated_share(same, uneven.activated_share());
  EXPECT_EQ(same.moh->top_k, uneven.moh->top_k);
  set_activated_share(same, 1.0);
  EXPECT_DOUBLE_EQ(same.activated_share(), 1.0);
  set_activated_share(same, 0.01);  // the shared heads stay
  EXPECT_EQ(same.moh->top_k, (std::vector<std::int64_t>{0, 0}));

  LlamaConfig dense = small(8, 4);
  EXPECT_NE(error_of([&] { set_top_k(dense, 2); }).find("dense"), std::string::npos);
  EXPECT_NE(error_of([&] { set_top_k(uneven, 9); }).find("0..8"), std::string::npos);
  EXPECT_NE(error_of([&] { set_activated_share(uneven, 1.5); }).find("1.5"), std::string::npos);
}

TEST(MohConfig, OrdersAndGroupsAreReadWrittenAndChecked) {
  LlamaConfig config = small(4, 2);
  config.moh = make_moh_config(2, 4, 0.5, 0.0, std::nullopt, "norm", 2);
  config.moh->head_order = {{2, 3, 0, 1}, {0, 1, 2, 3}};
  const moh::Json json = llama_config_json(config);
  EXPECT_EQ(json["moh"]["select"], "kv-group");
  EXPECT_EQ(llama_config_json(parse_llama_config(json, "config.json")), json);
  const auto broken = [&](const char* key, const moh::Json& value) {
    moh::Json copy = json;
    copy["moh"][key] = value;
    return error_of([&] { parse_llama_config(copy, "config.json"); });
  };
  EXPECT_NE(broken("head_order", {{2, 3, 0, 1}}).find("2 layers"), std::string::npos);
  EXPECT_NE(broken("head_order", {{2, 3, 0, 1}, {0, 1, 2, 2}}).find("once"), std::string::npos);
  EXPECT_NE(broken("head_order", {{2, 3, 0, 1}, {0, 2, 1, 3}}).find("together"), std::string::npos);
  EXPECT_NE(broken("head_order", {{1, 0, 2, 3}, {0, 1, 2, 3}}).find("together"), std::string::npos);
  EXPECT_NE(broken("head_order", "first").find("head_order"), std::string::npos);
  EXPECT_NE(broken("top_k", 1).find("groups of 2"), std::string::npos);
  EXPECT_NE(broken("select", "pairs").find("kv-group"), std::string::npos);
  EXPECT_THROW(make_moh_config(1, 8, 0.5, std::nullopt, 3, "norm", 2), moh::Error);
  EXPECT_EQ(make_moh_config(1, 8, 0.5, std::nullopt, 2, "norm", 2).shared_heads[0], 2);
}

}  // namespace
