// Windowed attention in blocks against one dense mask over all scores.
#include "moh/layers/window_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "moh/base/error.h"
#include "moh/ops/head_attention.h"

namespace {

using at::Tensor;

// softmax(q k^T / sqrt(D) + mask) v per head in float64; mask: t - window < s <= t, t counted from the end of the keys.
Tensor masked(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& gates,
              const std::optional<Tensor>& bias, std::int64_t window) {
  const std::int64_t tokens = query.size(1), keys = key.size(1), group = query.size(2) / key.size(2);
  const Tensor q = query.to(at::kDouble).transpose(1, 2);
  const Tensor k = key.to(at::kDouble).repeat_interleave(group, 2).transpose(1, 2);
  const Tensor v = value.to(at::kDouble).repeat_interleave(group, 2).transpose(1, 2);
  Tensor scores = at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(query.size(3)));
  const Tensor t = at::arange(keys - tokens, keys).unsqueeze(1), s = at::arange(keys);
  Tensor hidden = s.gt(t).logical_or(s.le(t - window)).expand(scores.sizes());
  if (bias) hidden = hidden.logical_or(bias->isinf());
  // Finite, and nothing where no key is visible: no NaN in gradients.
  const Tensor weights = at::softmax(scores.masked_fill(hidden, -1e30), -1).masked_fill(hidden, 0.0);
  const Tensor out = at::matmul(weights, v).transpose(1, 2);
  return out * gates.to(at::kDouble).unsqueeze(-1);
}

TEST(WindowAttention, EqualsOneMaskOverAllKeys) {
  at::manual_seed(3);
  struct Case {
    std::int64_t tokens, keys, window;
    bool padded;
  };
  for (const Case& c : {Case{1, 1, 1, false}, Case{5, 5, 1, false}, Case{200, 200, 7, false}, Case{200, 200, 70, true},
                        Case{130, 300, 65, false}, Case{1, 300, 40, true}, Case{1, 30, 40, false},
                        Case{64, 64, 64, false}, Case{65, 65, 64, true}, Case{3, 257, 256, false}}) {
    Tensor query = at::randn({2, c.tokens, 4, 8}).set_requires_grad(true);
    Tensor key = at::randn({2, c.keys, 2, 8}).set_requires_grad(true);
    Tensor value = at::randn({2, c.keys, 2, 8}).set_requires_grad(true);
    const Tensor gates = at::rand({2, c.tokens, 4}) * at::rand({2, c.tokens, 4}).gt(0.3);
    std::optional<Tensor> bias;
    if (c.padded) {
      bias = at::zeros({2, 1, 1, c.keys});
      bias->narrow(0, 1, 1).narrow(3, 0, c.keys / 4).fill_(-std::numeric_limits<float>::infinity());
    }
    const auto run = [&](bool composite) {
      return moh::layers::window_attention(composite ? &moh::ops::head_attention_composite : &moh::ops::head_attention,
                                           query, key, value, gates, bias, c.window);
    };
    const Tensor expected = masked(query, key, value, gates, bias, c.window);
    const Tensor weight = at::randn_like(expected);
    const auto inputs = {query, key, value};
    const auto gradients = [&](const Tensor& out) {
      std::vector<Tensor> found;
      for (const Tensor& input : inputs) input.mutable_grad() = Tensor();
      (out.to(at::kDouble) * weight).sum().backward();
      for (const Tensor& input : inputs) found.push_back(input.grad().clone());
      return found;
    };
    const auto wanted = gradients(expected);
    for (const bool composite : {false, true}) {
      const Tensor out = run(composite);
      EXPECT_LE((out - expected).abs().max().item<double>(), 2e-6) << c.tokens << " of " << c.keys << ", " << c.window;
      const auto got = gradients(out);
      for (int i = 0; i < 3; ++i) {
        EXPECT_LE((got[i] - wanted[i]).abs().max().item<double>(), 2e-5 * (1 + wanted[i].abs().max().item<double>()))
            << "gradient " << i << ", " << c.tokens << " of " << c.keys << ", " << c.window;
      }
    }
  }
}

TEST(WindowAttention, RefusesShapesThatDoNotFit) {
  const Tensor query = at::randn({1, 3, 2, 4}), key = at::randn({1, 2, 2, 4}), gates = at::ones({1, 3, 2});
  EXPECT_THROW(moh::layers::window_attention(&moh::ops::head_attention, query, query, query, gates, {}, 0), moh::Error);
  EXPECT_THROW(moh::layers::window_attention(&moh::ops::head_attention, query, key, key, gates, {}, 2), moh::Error);
  EXPECT_THROW(
      moh::layers::window_attention(&moh::ops::head_attention, query, query, query, gates, at::zeros({3, 3}), 2),
      moh::Error);
}

}  // namespace
