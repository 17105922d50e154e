// moh::gated_convolution against LibTorch's convolution and GELU in float64, values and gradients, on every backend.
#include "moh/ops/gated_convolution.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "moh/kernels/backend.h"
#include "tests/base/error_of.h"

namespace moh::ops {
namespace {

using at::Tensor;

Tensor formula(const Tensor& x, const Tensor& weight, const Tensor& bias, std::int64_t height, std::int64_t width) {
  const std::int64_t channels = weight.size(0);
  const Tensor map = x.narrow(-1, 0, channels).unflatten(1, {height, width}).permute({0, 3, 1, 2});
  const Tensor z = at::conv2d(map, weight, bias, 1, 1, 1, channels).permute({0, 2, 3, 1}).flatten(1, 2);
  return z * 0.5 * (1 + at::erf(z / std::sqrt(2.0))) * x.narrow(-1, channels, channels);
}

TEST(GatedConvolution, ValuesAndGradientsMatchTheFormula) {
  for (const auto& backend : kernels::backends()) {
    if (backend.gated_convolution_forward == nullptr || !backend.unavailable_reason().empty()) continue;
    kernels::force_backend(backend.name);
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      at::manual_seed(7);
      std::vector<Tensor> leaves = {at::randn({2, 15, 42}).to(type), at::randn({21, 1, 3, 3}), at::randn({21})};
      std::vector<Tensor> wide;
      for (Tensor& leaf : leaves) {
        wide.push_back(leaf.to(at::kDouble).set_requires_grad(true));
        leaf.set_requires_grad(true);
      }
      const Tensor target = at::randn({2, 15, 21});
      const Tensor out = gated_convolution(leaves[0], leaves[1], leaves[2], 3, 5);
      const Tensor expected = formula(wide[0], wide[1], wide[2], 3, 5);
      EXPECT_EQ(out.scalar_type(), type);
      (out * target).sum().backward();
      (expected * target).sum().backward();
      const double tolerance = type == at::kFloat ? 1e-5 : type == at::kHalf ? 5e-3 : 4e-2;
      EXPECT_TRUE(at::allclose(out.to(at::kDouble), expected, tolerance, tolerance)) << backend.name;
      for (std::size_t i = 0; i < leaves.size(); ++i) {
        const Tensor difference = (leaves[i].grad().to(at::kDouble) - wide[i].grad()).abs();
        EXPECT_LE(difference.max().item<double>(), tolerance * wide[i].grad().abs().max().item<double>())
            << backend.name << ", gradient " << i;
      }
    }
    kernels::force_backend("");
  }
}

TEST(GatedConvolution, CompositeAndViewsGiveTheSame) {
  at::manual_seed(8);
  const Tensor x = at::randn({1, 12, 20}), weight = at::randn({5, 1, 3, 3}), bias = at::randn({5});
  const Tensor view = x.narrow(-1, 4, 10);
  const Tensor out = gated_convolution(view, weight, bias, 4, 3);
  EXPECT_TRUE(at::allclose(out, gated_convolution_composite(view, weight, bias, 4, 3), 1e-5, 1e-6));
  const Tensor wide = gated_convolution(view.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble), 4, 3);
  EXPECT_TRUE(at::allclose(wide, formula(view.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble), 4, 3)));
}

TEST(GatedConvolution, SaysWhatIsWrong) {
  const Tensor x = at::zeros({1, 6, 8}), weight = at::zeros({4, 1, 3, 3}), bias = at::zeros({4});
  const auto complaint = [&](const Tensor& a, const Tensor& w, const Tensor& b, std::int64_t height) {
    return test::error_of([&] { gated_convolution(a, w, b, height, 3); });
  };
  EXPECT_NE(complaint(x, weight, bias, 3).find("x must be [B, 3 * 3, 2 C], got [1, 6, 8]"), std::string::npos);
  EXPECT_NE(complaint(x, at::zeros({4, 1, 5, 5}), bias, 2).find("weight must be [4, 1, 3, 3]"), std::string::npos);
  EXPECT_NE(complaint(x, weight, at::zeros({3}), 2).find("bias [4]"), std::string::npos);
  EXPECT_NE(complaint(x, weight.to(at::kLong), bias, 2).find("floating type"), std::string::npos);
}

}  // namespace
}  // namespace moh::ops
