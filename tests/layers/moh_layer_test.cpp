// The layer against its formula in float64, token by token and head by head; a router of the test's own.
#include "moh/layers/moh_layer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "moh/base/error.h"
#include "moh/ops/projection_cost.h"
#include "tests/base/error_of.h"

namespace moh::layers {
namespace {

using at::Tensor;

// Gates from the setting's own list, the same for every token; what unselected heads leave is their mean.
class Fixed final : public Router {
 public:
  explicit Fixed(const RouterTensors& tensor) : means_(*tensor("means.weight")) {}
  double share(const RouterSetting&) const override { return 0.5; }
  Tensor balance_loss(const RouterSetting&, const ops::Routing&) const override { return {}; }
  Tensor compensation(const RouterSetting&, const Tensor& gates) const override {
    return at::matmul(1 - gates, means_);
  }

 protected:
  ops::Routing decide(const RouterSetting& setting, const Tensor& x, const Tensor& scored) const override {
    EXPECT_FALSE(scored.defined());
    const auto gates = setting.own->at("fixed_gates").get<std::vector<double>>();
    const Tensor row = at::tensor(gates, at::TensorOptions(at::kFloat));
    return {row.expand({x.size(0), x.size(1), row.size(0)}).contiguous(), {}, {}};
  }

 private:
  Tensor means_;  // [H, C]
};

const RegisterRouter registered({.name = "fixed",
                                 .summary = "for this test",
                                 .needs_query = false,
                                 .keys = {"fixed_gates"},
                                 .tensors = [](const RouterSetting& s) -> std::vector<RouterTensor> {
                                   return {{"means.weight", {s.choices, s.hidden}, false}};
                                 },
                                 .make = [](const RouterTensors& tensor) -> std::unique_ptr<Router> {
                                   return std::make_unique<Fixed>(tensor);
                                 }});

struct Sizes {
  std::int64_t batch = 2, tokens = 7, hidden = 12, heads = 6, kv_heads = 3, head_dim = 4;
};

// sum_h W_h g_h softmax(q_h k^T / sqrt(D)) v, causal.
Tensor by_formula(const Tensor& x, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                  const Tensor& gates, const Sizes& s) {
  const Tensor wide = x.to(at::kDouble);
  const auto rows = [&](const Tensor& weight, std::int64_t head) {
    return at::matmul(wide, weight.to(at::kDouble).narrow(0, head * s.head_dim, s.head_dim).t());
  };
  Tensor y = at::zeros({s.batch, s.tokens, s.hidden}, at::kDouble);
  const Tensor later = at::ones({s.tokens, s.tokens}, at::kBool).triu(1);
  for (std::int64_t head = 0; head < s.heads; ++head) {
    const std::int64_t kv = head / (s.heads / s.kv_heads);
    const Tensor scores = at::matmul(rows(q, head), rows(k, kv).transpose(1, 2)) / std::sqrt(double(s.head_dim));
    const Tensor attended = at::matmul(at::softmax(scores.masked_fill(later, -1e300), -1), rows(v, kv));
    const Tensor gated = attended * gates.select(-1, head).unsqueeze(-1).to(at::kDouble);
    y = y + at::matmul(gated, out.to(at::kDouble).narrow(1, head * s.head_dim, s.head_dim).t());
  }
  return y;
}

class MohLayerTest : public testing::Test {
 protected:
  void SetUp() override {
    at::manual_seed(5);
    const auto weight = [&](std::int64_t rows, std::int64_t columns) { return at::randn({rows, columns}) * 0.4; };
    x_ = at::randn({s_.batch, s_.tokens, s_.hidden});
    q_ = weight(s_.heads * s_.head_dim, s_.hidden);
    k_ = weight(s_.kv_heads * s_.head_dim, s_.hidden);
    v_ = weight(s_.kv_heads * s_.head_dim, s_.hidden);
    out_ = weight(s_.hidden, s_.heads * s_.head_dim);
    setting_.hidden = s_.hidden;
    setting_.choices = s_.heads;
    setting_.shared = 2;
    setting_.top_k = 2;
    tensors_["wg.weight"] = weight(4, s_.hidden);
    tensors_["wg_1.weight"] = weight(2, s_.hidden);
    tensors_["wg_0.weight"] = weight(2, s_.hidden);
    tensors_["means.weight"] = weight(s_.heads, s_.hidden);
  }
  void TearDown() override { ops::force_skipping(std::nullopt); }

  std::unique_ptr<Router> router(RouterKind kind) const {
    return make_router(kind, [&](const std::string& name) -> std::optional<Tensor> {
      const auto found = tensors_.find(name);
      return found == tensors_.end() ? std::nullopt : std::optional(found->second);
    });
  }
  MohLayer layer(const Router* router, bool joint) const {
    MohLayer layer;
    layer.num_heads = s_.heads;
    layer.num_kv_heads = s_.kv_heads;
    layer.out = Linear(out_);
    layer.router = router;
    if (joint) {
      layer.in = Projections::of_joint(Linear(at::cat({q_, k_, v_})), q_.size(0));
    } else {
      layer.in.query = Linear(q_);
      layer.in.key = Linear(k_);
      layer.in.value = Linear(v_);
    }
    return layer;
  }
  static Tensor causal(const ProjectedHeads& heads, const Gates& gates) {
    return attend_to(heads.query, heads.key, heads.value, gates, {.causal = true});
  }

  Sizes s_;
  Tensor x_, q_, k_, v_, out_;
  RouterSetting setting_;
  std::map<std::string, Tensor> tensors_;
};

TEST_F(MohLayerTest, FollowsTheFormula) {
  const c10::NoGradGuard no_grad;
  for (const std::string kind : {"", "norm", "two-stage"}) {
    for (const bool joint : {false, true}) {
      for (const bool skip : {false, true}) {
        ops::force_skipping(skip);
        const auto router = kind.empty() ? nullptr : this->router(kind);
        const auto output = moh_layer(layer(router.get(), joint), setting_, x_, {.keep_query = true}, causal);
        const Tensor gates = router ? output.routing.gates : at::ones({s_.batch, s_.tokens, s_.heads});
        if (router) {
          EXPECT_TRUE(gates.ne(0).sum(-1).eq(4).all().item<bool>()) << kind;
        }
        const Tensor expected = by_formula(x_, q_, k_, v_, out_, gates, s_);
        EXPECT_LT((output.y - expected).abs().max().item<double>(), 2e-5) << kind << joint << skip;
        EXPECT_EQ(output.query.sizes(), (at::IntArrayRef{s_.batch, s_.tokens, s_.heads, s_.head_dim}));
        EXPECT_FALSE(output.load_balance_loss.defined());  // nobody asked
      }
    }
  }
}

TEST_F(MohLayerTest, GivesWhatIsAskedFor) {
  const auto two_stage = router("two-stage");
  const auto output =
      moh_layer(layer(two_stage.get(), false), setting_, x_, {.balance_loss = true, .leaf_gates = true}, causal);
  const Tensor chosen =
      at::zeros({s_.batch, s_.tokens, 4}).scatter(-1, output.routing.indices, 1.0).to(at::kDouble).mean({0, 1});
  const Tensor scores = at::softmax(at::matmul(x_, tensors_["wg.weight"].t()).to(at::kDouble), -1).mean({0, 1});
  EXPECT_NEAR(output.load_balance_loss.item<double>(), (chosen * scores).sum().item<double>(), 1e-6);
  EXPECT_TRUE(output.routing.gates.is_leaf() && output.routing.gates.requires_grad());
  EXPECT_FALSE(output.query.defined());
}

// Every head is computed for gradients that exist alone: a trained router's unselected gates have none.
TEST_F(MohLayerTest, ComputesEveryHeadOnlyForGradientsOfEveryGate) {
  setting_.straight_through = StraightThrough::kAll;
  q_.set_requires_grad(true);
  tensors_["wg.weight"].set_requires_grad(true);
  for (const std::string kind : {"norm", "two-stage"}) {
    const auto router = this->router(kind);
    bool every = false;
    moh_layer(layer(router.get(), false), setting_, x_, {}, [&](const ProjectedHeads& heads, const Gates& gates) {
      every = gates.every_gradient;
      return causal(heads, gates);
    });
    EXPECT_EQ(every, kind == "norm") << kind;
  }
}

TEST_F(MohLayerTest, ARouterOfOnesOwnPutsSomethingInTheOtherHeadsPlace) {
  const c10::NoGradGuard no_grad;
  const Json own = {{"fixed_gates", {1.0, 0.0, 0.25, 0.0, 0.0, 2.0}}};
  setting_.own = &own;
  const auto router = this->router("fixed");
  ASSERT_EQ(RouterKind("fixed")->tensors(setting_).size(), 1u);
  for (const bool skip : {false, true}) {
    ops::force_skipping(skip);
    const auto output = moh_layer(layer(router.get(), false), setting_, x_, {.balance_loss = true}, causal);
    const Tensor gates = at::tensor({1.0, 0.0, 0.25, 0.0, 0.0, 2.0}, at::kDouble).expand({s_.batch, s_.tokens, 6});
    const Tensor means = at::matmul(1 - gates, tensors_["means.weight"].to(at::kDouble));
    EXPECT_LT((output.y - by_formula(x_, q_, k_, v_, out_, gates, s_) - means).abs().max().item<double>(), 2e-5);
    EXPECT_FALSE(output.load_balance_loss.defined());
  }
}

TEST(Routers, AreFoundByName) {
  EXPECT_TRUE(is_router("norm"));
  EXPECT_STREQ(RouterKind("two-stage").name(), "two-stage");
  EXPECT_TRUE(RouterKind("norm")->needs_query);
  EXPECT_NE(test::error_of([] { RouterKind("three-stage"); }).find("norm, two-stage"), std::string::npos);
}

// A part of a weight is bound before the weight is told to collect gradients.
TEST(Linear, PartsFollowTheWhole) {
  at::manual_seed(1);
  Tensor weight = at::randn({6, 2, 2}), bias = at::randn({6});
  const Linear whole(weight, bias), part = whole.rows(1, 4).rows(1, 2);
  weight.set_requires_grad(true);
  const Tensor x = at::randn({3, 4});
  EXPECT_EQ(part.outputs(), 2);
  EXPECT_EQ(part.inputs(), 4);
  EXPECT_TRUE(at::allclose(part(x), at::matmul(x, weight.flatten(1).t()).narrow(1, 2, 2) + bias.narrow(0, 2, 2)));
  part(x).sum().backward();
  EXPECT_TRUE(at::allclose(weight.grad().flatten(1).narrow(0, 2, 2), x.sum(0).expand({2, 4})));
  EXPECT_TRUE(weight.grad().narrow(0, 0, 2).eq(0).all().item<bool>());
  const auto before = whole.version();
  bias.add_(1);
  EXPECT_NE(whole.version(), before);
}

}  // namespace
}  // namespace moh::layers
