// The lists of a selection against torch's nonzero.
#include "moh/ops/selection.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/ops/test_device.h"

namespace {

using at::Tensor;

TEST(Selection, ListsTheRowsOfEveryHeadInOrder) {
  at::manual_seed(2);
  // The last is large enough for several threads.
  for (const std::vector<std::int64_t>& sizes :
       std::vector<std::vector<std::int64_t>>{{1, 1, 1}, {2, 7, 3}, {0, 4}, {5, 6}, {3, 900, 33}}) {
    for (const double density : {0.0, 0.4, 1.0}) {
      const Tensor gates = at::randn(sizes, on_device()) * at::rand(sizes, on_device()).lt(density);
      const moh::ops::Selection selection = moh::ops::select_heads(gates);
      const std::int64_t heads = sizes.back();
      ASSERT_EQ(selection.rows.numel(), gates.numel());
      EXPECT_EQ(selection.first[0].item<std::int64_t>(), 0);
      for (std::int64_t h = 0; h < heads; ++h) {
        const auto begin = selection.first[h].item<std::int64_t>(), end = selection.first[h + 1].item<std::int64_t>();
        const Tensor wanted = gates.reshape({-1, heads}).select(1, h).nonzero().squeeze(1);
        EXPECT_TRUE(at::equal(selection.rows.slice(0, begin, end).to(at::kLong), wanted)) << h;
      }
      const double share = gates.numel() == 0 ? 1.0 : gates.ne(0).to(at::kDouble).mean().item<double>();
      EXPECT_DOUBLE_EQ(moh::ops::active_share(std::vector<moh::ops::Selection>{selection}), share);
    }
  }
}

TEST(Selection, IsRefusedWhereItIsNotOfTheGates) {
  const Tensor gates = at::ones({4, 2}, on_device());
  const moh::ops::Selection other = moh::ops::select_heads(at::ones({3, 2}, on_device()));
  if (!gates.is_cpu()) GTEST_SKIP() << "a GPU does not read the lists";
  EXPECT_THROW(moh::ops::KernelSelection(gates, other.rows, other.first), std::exception);
  EXPECT_THROW(moh::ops::KernelSelection(gates, other.rows, std::nullopt), std::exception);
}

}  // namespace
