// Operations and bytes that cases need, counted by hand.
#include "bench/work.h"

#include <gtest/gtest.h>

#include "bench/common.h"

namespace moh::bench {
namespace {

TEST(Work, BoundsAreTheSlowerOfArithmeticAndMemoryStepByStep) {
  const Limits limits{.gemm_gflops = 100, .read_gbs = 10};
  EXPECT_DOUBLE_EQ(least_ms({{1e8, 0}}, limits), 1);   // 0.1 GFLOP at 100 GFLOP/s
  EXPECT_DOUBLE_EQ(least_ms({{0, 1e8}}, limits), 10);  // 0.1 GB at 10 GB/s
  EXPECT_DOUBLE_EQ(least_ms({{1e8, 1e8}, {3e8, 1e6}}, limits), 10 + 3);
}

TEST(Work, ProductsAndGradients) {
  const Work product = matrix_product(3, 5, 7, 4);
  EXPECT_EQ(product.flops, 2 * 3 * 5 * 7);
  EXPECT_EQ(product.bytes, 4 * (15 + 35 + 21));
  EXPECT_EQ(with_gradients(product).flops, 3 * product.flops);
}

// Every number by a plain loop over the definition.
TEST(Work, AttentionCountsActiveRowsVisibleKeysAndNeededKvHeads) {
  constexpr int kBatch = 2, kQueries = 5, kKeys = 9, kHeads = 6, kKvHeads = 3;
  const at::Tensor gates = at::zeros({kBatch, kQueries, kHeads});
  gates[0][0][0] = 0.5;
  gates[0][4][1] = 2.0;
  gates[0][2][5] = -1.0;
  gates[1][3][2] = 1.0;
  for (const bool causal : {true, false}) {
    double pairs = 0, rows = 0, kv = 0;
    for (int b = 0; b < kBatch; ++b) {
      bool needed[kKvHeads] = {};
      for (int t = 0; t < kQueries; ++t) {
        for (int h = 0; h < kHeads; ++h) {
          if (gates[b][t][h].item<float>() == 0) continue;
          rows += 1;
          needed[h / (kHeads / kKvHeads)] = true;
          for (int s = 0; s < kKeys; ++s) pairs += !causal || s <= t + kKeys - kQueries;
        }
      }
      for (const bool each : needed) kv += each ? kKeys : 0;
    }
    const AttentionWork work = attention_work(gates, kKeys, kKvHeads, 16, causal, 4);
    EXPECT_EQ(work.visible_pairs, pairs);
    EXPECT_EQ(work.active_rows, rows);
    EXPECT_EQ(work.kv_rows, kv);
    EXPECT_EQ(attention_forward(work).flops, 4 * pairs * 16);
    EXPECT_EQ(attention_forward(work).bytes, (2 * rows + 2 * kv) * 16 * 4);
    EXPECT_EQ(attention_backward(work).flops, 10 * pairs * 16);
  }
}

TEST(Work, RandomGatesHaveTheShareAskedForAndKeepGroupsTogether) {
  Case c;
  c.heads = 12;
  c.kv_heads = 4;
  c.batch = 2;
  c.activated = 0.5;
  const at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
  for (const char* select : {"head", "kv-group"}) {
    c.select = select;
    const at::Tensor gates = random_gates(c, 33, generator);
    ASSERT_EQ(gates.sizes(), at::IntArrayRef({2, 33, 12}));
    const at::Tensor counts = gates.ne(0).sum(-1);
    EXPECT_TRUE(counts.eq(6).all().item<bool>()) << select;
    EXPECT_DOUBLE_EQ(active_share(gates), 0.5);
    const at::Tensor by_group = gates.ne(0).unflatten(-1, {4, 3}).sum(-1);
    const bool whole = by_group.eq(0).logical_or(by_group.eq(3)).all().item<bool>();
    EXPECT_EQ(whole, c.select == "kv-group");
  }
}

}  // namespace
}  // namespace moh::bench
