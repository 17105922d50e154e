// The head-skipping projections against LibTorch's own linear layers in float64: values, gradients, dtypes, strides,
// autocast, the dense path and the skipping one.
#include "moh/ops/projection.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "moh/base/error.h"
#include "moh/ops/autocast.h"
#include "moh/ops/projection_cost.h"
#include "tests/ops/test_device.h"

namespace {

using at::Tensor;
using std::optional;

Tensor random_tensor(at::IntArrayRef sizes, at::ScalarType type = at::kFloat) {
  return at::randn(sizes, on_device(at::kDouble)).to(type);
}

// Every projection computed with whole matrices and a mask.
Tensor masked_projection(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& gates) {
  auto shape = gates.sizes().vec();
  shape.push_back(weight.size(0) / gates.size(-1));
  return at::linear(x, weight, bias).reshape(shape) * gates.ne(0).unsqueeze(-1).to(x.scalar_type());
}
Tensor masked_combination(const Tensor& heads, const Tensor& weight, const optional<Tensor>& bias,
                          const Tensor& gates) {
  return at::linear((heads * gates.ne(0).unsqueeze(-1).to(heads.scalar_type())).flatten(-2), weight, bias);
}

class Projection : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    at::manual_seed(7);
    moh::ops::force_skipping(GetParam());
  }
  void TearDown() override { moh::ops::force_skipping(std::nullopt); }
};
INSTANTIATE_TEST_SUITE_P(Path, Projection, testing::Bool(),
                         [](const auto& info) { return info.param ? "skipping" : "dense"; });

using Function = Tensor (*)(const Tensor&, const Tensor&, const optional<Tensor>&, const Tensor&);

// Value and gradients of sum(f(...) * target) for both functions, compared relative to the largest number.
void compare(Function got, Function expected, const Tensor& input, const Tensor& weight, const optional<Tensor>& bias,
             const Tensor& gates, double tolerance) {
  const auto run = [&](Function f, at::ScalarType type) {
    std::vector<Tensor> leaves = {input.detach().to(type), weight.detach().to(type)};
    if (bias) leaves.push_back(bias->detach().to(type));
    for (Tensor& leaf : leaves) leaf.set_requires_grad(true);
    const Tensor out = f(leaves[0], leaves[1], bias ? optional<Tensor>(leaves[2]) : std::nullopt, gates);
    const Tensor target = at::sin(at::arange(out.numel(), on_device(at::kDouble))).reshape(out.sizes());
    out.backward(target.to(input.scalar_type()).to(out.scalar_type()));  // rounded alike for both
    std::vector<Tensor> results = {out.detach()};
    for (const Tensor& leaf : leaves) results.push_back(leaf.grad());
    return results;
  };
  const auto ours = run(got, input.scalar_type()), theirs = run(expected, at::kDouble);
  const char* names[] = {"out", "grad input", "grad weight", "grad bias"};
  for (std::size_t i = 0; i < ours.size(); ++i) {
    ASSERT_EQ(ours[i].sizes(), theirs[i].sizes()) << names[i];
    ASSERT_EQ(ours[i].scalar_type(), input.scalar_type()) << names[i];
    const double scale = std::max(1.0, theirs[i].abs().max().item<double>());
    EXPECT_LE((ours[i].to(at::kDouble) - theirs[i]).abs().max().item<double>(), tolerance * scale) << names[i];
  }
}

TEST_P(Projection, ValuesAndGradientsEqualMaskedLinearLayers) {
  const struct {
    at::ScalarType type;
    double tolerance;
  } types[] = {{at::kFloat, 1e-5}, {at::kBFloat16, 2e-2}, {at::kHalf, 2e-3}, {at::kDouble, 1e-12}};
  for (const auto& [type, tolerance] : types) {
    for (const std::int64_t tokens : {1, 3, 90}) {
      for (const bool has_bias : {false, true}) {
        SCOPED_TRACE(testing::Message() << type << " tokens " << tokens << " bias " << has_bias);
        const std::int64_t heads = 6, dim = 24, width = 80;
        const Tensor gates = at::randn({2, tokens, heads}, on_device()) *
                             at::rand({2, tokens, heads}, on_device()).gt(0.4).to(at::kFloat);
        const auto bias = [&](std::int64_t size) -> optional<Tensor> {
          return has_bias ? optional<Tensor>(random_tensor({size}, type)) : std::nullopt;
        };
        compare(&moh::ops::project_heads, &masked_projection, random_tensor({2, tokens, width}, type),
                random_tensor({heads * dim, width}, type), bias(heads * dim), gates, tolerance);
        compare(&moh::ops::combine_heads, &masked_combination, random_tensor({2, tokens, heads, dim}, type),
                random_tensor({width, heads * dim}, type), bias(width), gates, tolerance);
      }
    }
  }
}

TEST_P(Projection, TakesAnyStrides) {
  const Tensor gates = at::rand({5, 7, 3}, on_device()).gt(0.5).to(at::kFloat);
  const Tensor x = random_tensor({7, 5, 40}).transpose(0, 1), weight = random_tensor({40, 24}).t();
  EXPECT_TRUE(at::allclose(moh::ops::project_heads(x, weight, std::nullopt, gates),
                           masked_projection(x, weight, std::nullopt, gates), 1e-4, 1e-5));
  const Tensor heads = random_tensor({5, 3, 7, 8}).transpose(1, 2), out = random_tensor({24, 40}).t();
  EXPECT_TRUE(at::allclose(moh::ops::combine_heads(heads, out, std::nullopt, gates),
                           masked_combination(heads, out, std::nullopt, gates), 1e-4, 1e-5));
}

TEST_P(Projection, FollowsAutocast) {
  const Tensor gates = at::rand({2, 70, 4}, on_device()).gt(0.5).to(at::kFloat);
  const Tensor x = random_tensor({2, 70, 32}), weight = random_tensor({64, 32}), out = random_tensor({32, 64});
  const moh::ops::Autocast autocast(at::kBFloat16, test_device().type());
  const Tensor heads = moh::ops::project_heads(x, weight, std::nullopt, gates);
  EXPECT_EQ(heads.scalar_type(), at::kBFloat16);
  EXPECT_EQ(moh::ops::combine_heads(heads, out, std::nullopt, gates).scalar_type(), at::kBFloat16);
}

TEST(ProjectionErrors, NameTheOperatorAndTheShapes) {
  const Tensor gates = at::ones({2, 3, 4});
  const auto message = [](const auto& call) {
    try {
      call();
    } catch (const std::exception& error) {
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  EXPECT_NE(message([&] {
              moh::ops::project_heads(at::ones({2, 3, 8}), at::ones({16, 9}), {}, gates);
            }).find("[project_heads] x must be [..., C]"),
            std::string::npos);
  EXPECT_NE(message([&] {
              moh::ops::combine_heads(at::ones({2, 3, 5, 8}), at::ones({9, 40}), {}, gates);
            }).find("[combine_heads] gates must be"),
            std::string::npos);
  EXPECT_NE(message([&] {
              moh::ops::project_heads(at::ones({2, 3, 8}), at::ones({16, 8}).to(at::kBFloat16), {}, gates);
            }).find("one floating dtype"),
            std::string::npos);
}

TEST(ProjectionCost, DenseWhereNothingIsSkipped) {
  using moh::ops::Projection;
  for (const auto projection : {Projection::kValues, Projection::kWeightGradient}) {
    for (const char* backend : {"avx512", "avx2", "portable"}) {
      for (const std::int64_t rows : {1, 50, 2048}) {
        EXPECT_FALSE(moh::ops::skipping_pays(projection, backend, rows, 64, 1.0, at::kFloat));
      }
    }
    EXPECT_TRUE(moh::ops::skipping_pays(projection, "avx512", 2048, 64, 0.5, at::kFloat));
  }
  EXPECT_TRUE(moh::ops::skipping_pays(Projection::kValues, "avx2", 1, 64, 0.5, at::kFloat));
  EXPECT_TRUE(moh::ops::skipping_pays(Projection::kValues, "avx512", 784, 24, 0.5, at::kFloat));
  EXPECT_FALSE(moh::ops::skipping_pays(Projection::kValues, "avx512", 784, 24, 0.75, at::kFloat));
  EXPECT_TRUE(moh::ops::skipping_pays(Projection::kValues, "avx512", 784, 64, 0.75, at::kFloat));
  for (const auto projection : {Projection::kValues, Projection::kWeightGradient}) {
    EXPECT_TRUE(moh::ops::skipping_pays(projection, "avx512bf16", 2048, 64, 0.5, at::kBFloat16));
    EXPECT_FALSE(moh::ops::skipping_pays(projection, "avx512bf16", 2048, 64, 0.95, at::kBFloat16));
    EXPECT_FALSE(moh::ops::skipping_pays(projection, "avx512bf16", 50, 64, 0.5, at::kBFloat16));
  }
}

}  // namespace
