// ops::linear against LibTorch's own composition in float64: values with and without activation, gradients, dtypes,
// autocast, odd strides; the same bits for any number of threads and whatever rows come with it.
#include "moh/ops/linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "moh/ops/autocast.h"

namespace moh::ops {
namespace {

using at::Tensor;

Tensor expected(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, Activation activation) {
  Tensor y = at::matmul(x.to(at::kDouble), weight.to(at::kDouble).t());
  if (bias) y = y + bias->to(at::kDouble);
  if (activation == Activation::kNone) return y;
  return at::gelu(y, activation == Activation::kGelu ? "none" : "tanh");
}

void expect_close(const Tensor& got, const Tensor& wanted, double tolerance) {
  ASSERT_EQ(got.sizes(), wanted.sizes());
  EXPECT_LE((got.to(at::kDouble) - wanted).abs().max().item<double>(), tolerance);
}

TEST(Linear, EqualsTheProductInFloat64) {
  at::manual_seed(3);
  const c10::NoGradGuard no_grad;
  for (const std::int64_t rows : {1, 63, 64, 257}) {
    for (const std::int64_t width : {5, 72}) {
      for (const Activation activation : {Activation::kNone, Activation::kGelu, Activation::kGeluTanh}) {
        for (const bool has_bias : {false, true}) {
          const Tensor x = at::randn({rows, width}), weight = at::randn({33, width}) / std::sqrt(width);
          const std::optional<Tensor> bias = has_bias ? std::optional(at::randn({33})) : std::nullopt;
          const Tensor wanted = expected(x, weight, bias, activation);
          expect_close(moh::ops::linear(x, weight, bias, activation), wanted, 1e-5);
          expect_close(moh::ops::linear(x.unsqueeze(0), weight, bias, activation)[0], wanted, 1e-5);
          // Parts of other tensors: rows and columns that do not lie side by side.
          const Tensor wide = at::cat({weight, weight}, 1);
          expect_close(moh::ops::linear(x, wide.narrow(1, width, width), bias, activation), wanted, 1e-5);
          expect_close(moh::ops::linear(x.t().contiguous().t(), weight, bias, activation), wanted, 1e-5);
          expect_close(moh::ops::linear(x.to(at::kDouble), weight.to(at::kDouble), bias ? bias->to(at::kDouble) : bias,
                                        activation),
                       wanted, 1e-12);
        }
      }
    }
  }
  EXPECT_EQ(moh::ops::linear(at::ones({0, 4}), at::ones({3, 4}), std::nullopt).sizes(),
            (std::vector<std::int64_t>{0, 3}));
}

TEST(Linear, Gradients) {
  for (const std::int64_t rows : {80, 4100}) {
    at::manual_seed(4);
    Tensor x = at::randn({rows / 2, 2, 12}).set_requires_grad(true),
           weight = at::randn({9, 12}).set_requires_grad(true);
    Tensor bias = at::randn({9}).set_requires_grad(true);
    const Tensor target = at::randn({rows / 2, 2, 9});
    (moh::ops::linear(x, weight, bias, Activation::kGeluTanh) * target).sum().backward();
    const auto copy = [](const Tensor& tensor) { return tensor.detach().to(at::kDouble).set_requires_grad(true); };
    Tensor x64 = copy(x), weight64 = copy(weight), bias64 = copy(bias);
    (expected(x64, weight64, bias64, Activation::kGeluTanh) * target).sum().backward();
    expect_close(x.grad(), x64.grad(), 1e-4);
    expect_close(weight.grad(), weight64.grad(), 1e-3);
    expect_close(bias.grad(), bias64.grad(), 1e-3);
  }
}

// Both shapes of the weight, few rows and many, and a weight alone that wants its gradient.
TEST(Linear, GradientsOfEveryShape) {
  at::manual_seed(8);
  for (const std::int64_t rows : {10, 100, 2100}) {
    for (const auto& [from, to] : {std::pair<std::int64_t, std::int64_t>{7, 30}, {30, 7}, {16, 16}}) {
      for (const bool frozen_input : {false, true}) {
        Tensor x = at::randn({rows, from}), weight = at::randn({to, from}).set_requires_grad(true);
        x.set_requires_grad(!frozen_input);
        const Tensor target = at::randn({rows, to});
        (moh::ops::linear(x, weight, std::nullopt) * target).sum().backward();
        EXPECT_EQ(x.grad().defined(), !frozen_input);
        const Tensor t = target.to(at::kDouble);
        if (!frozen_input) expect_close(x.grad(), at::mm(t, weight.detach().to(at::kDouble)), 1e-4);
        expect_close(weight.grad(), at::mm(t.t(), x.detach().to(at::kDouble)), 1e-3);
      }
    }
  }
}

TEST(Linear, FollowsAutocast) {
  at::manual_seed(5);
  const c10::NoGradGuard no_grad;
  const Tensor x = at::randn({100, 16}), weight = at::randn({8, 16});
  const Autocast scope(at::kBFloat16);
  const Tensor y = moh::ops::linear(x, weight, std::nullopt);
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  expect_close(y, expected(x, weight, std::nullopt, Activation::kNone), 0.2);
}

TEST(Linear, SameBitsForAnyThreadsAndCompany) {
  at::manual_seed(6);
  const c10::NoGradGuard no_grad;
  const Tensor x = at::randn({256, 192}), weight = at::randn({576, 192}), bias = at::randn({576});
  at::set_num_threads(1);
  const Tensor alone = moh::ops::linear(x, weight, bias, Activation::kGeluTanh);
  for (const int threads : {2, 3, 5}) {
    at::set_num_threads(threads);
    EXPECT_TRUE(at::equal(moh::ops::linear(x, weight, bias, Activation::kGeluTanh), alone)) << threads;
    EXPECT_TRUE(
        at::equal(moh::ops::linear(at::cat({x, x}), weight, bias, Activation::kGeluTanh).narrow(0, 256, 256), alone));
  }
  at::set_num_threads(1);
}

}  // namespace
}  // namespace moh::ops
