// The check before timing: the reference against LibTorch's own attention and its gradients, and that wrong results are
// refused.
#include "bench/reference.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "moh/base/error.h"

namespace moh::bench {
namespace {

using at::Tensor;

TEST(BenchReference, AgreesWithLibTorchForwardAndBackward) {
  at::manual_seed(1);
  const auto options = at::TensorOptions(at::kDouble);
  for (const bool causal : {false, true}) {
    // 300 rows are more than one block; fewer queries than keys put the causal mask at the last query.
    Tensor query = at::randn({2, 300, 6, 8}, options), key = at::randn({2, 310, 3, 8}, options),
           value = at::randn({2, 310, 3, 8}, options), gates = at::rand({2, 300, 6}, options);
    gates.masked_fill_(gates < 0.3, 0);
    const Tensor grad = at::randn({2, 300, 6, 8}, options);
    for (Tensor* tensor : {&query, &key, &value}) tensor->set_requires_grad(true);
    const Tensor mask = at::ones({300, 310}, options.dtype(at::kBool)).tril(causal ? 10 : 310);
    const Tensor out =
        at::scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask, 0.0,
                                         false, {}, /*enable_gqa=*/true)
            .transpose(1, 2) *
        gates.unsqueeze(-1);
    out.backward(grad);
    for (std::int64_t kv_head = 0; kv_head < 3; ++kv_head) {
      const auto reference = attention_reference(query, key, value, gates, causal, grad, kv_head);
      const auto near = [](const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); };
      EXPECT_LT(near(reference.out, out.detach().narrow(2, 2 * kv_head, 2)), 1e-12);
      EXPECT_LT(near(reference.grad_query, query.grad().narrow(2, 2 * kv_head, 2)), 1e-12);
      EXPECT_LT(near(reference.grad_key, key.grad().narrow(2, kv_head, 1)), 1e-12);
      EXPECT_LT(near(reference.grad_value, value.grad().narrow(2, kv_head, 1)), 1e-12);
    }
  }
}

TEST(BenchReference, RowsWithoutKeysAreZero) {
  const Tensor query = at::randn({1, 5, 1, 4}), key = at::randn({1, 3, 1, 4});
  const auto reference = attention_reference(query, key, key, at::ones({1, 5, 1}), true, at::ones_like(query), 0);
  EXPECT_EQ(reference.out.narrow(1, 0, 2).abs().max().item<double>(), 0);
  EXPECT_TRUE(at::isfinite(reference.grad_query).all().item<bool>());
}

std::string refusal(const Tensor& actual, const Tensor& expected) {
  try {
    check_close(actual, expected, 1e-4, "moh's output");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(BenchReference, WrongResultsAreRefusedWithPlaceAndValues) {
  const Tensor expected = at::arange(24, at::TensorOptions(at::kDouble)).reshape({2, 3, 4});
  Tensor actual = expected.to(at::kFloat);
  EXPECT_EQ(check_close(actual, expected, 1e-4, "moh's output"), 0);
  actual[1][0][2] += 1e-3;  // allowed: 1e-4 of the largest value, 23
  EXPECT_EQ(refusal(actual, expected), "");
  actual[1][0][2] += 1;
  EXPECT_NE(refusal(actual, expected).find("at [1, 0, 2] it is 15.001"), std::string::npos)
      << refusal(actual, expected);
  actual = expected.clone();
  actual[0][1][1] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NE(refusal(actual, expected).find("at [0, 1, 1] it is nan"), std::string::npos) << refusal(actual, expected);
  EXPECT_NE(refusal(actual.narrow(0, 0, 1), expected), "");
}

}  // namespace
}  // namespace moh::bench
