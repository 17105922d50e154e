// What a computation needs at least: multiply-adds (counted as 2) and bytes between memory and core, each input read
// once and each output written once. Independent of how anybody implements it.
#pragma once

#include <cstdint>
#include <vector>

namespace moh::bench {

struct Work {
  double flops = 0, bytes = 0;
};

// What the machine gives at most; measured, see bench/machine.h.
struct Limits {
  double gemm_gflops = 0;             // matrix products of this dtype
  double read_gbs = 0, copy_gbs = 0;  // 1e9 bytes a second; a copied byte is read and written: counts twice
  double fma_gflops = 0;              // fp32 multiply-adds in registers alone
};

// Least time of steps that run one after the other, each bound by arithmetic or by memory.
double least_ms(const std::vector<Work>& steps, const Limits& limits);
Work total(const std::vector<Work>& steps);

// A product of [m, k] by [k, n].
Work matrix_product(double m, double k, double n, double bytes_per_element);

// The same with its two gradients, as training needs them.
Work with_gradients(const Work& product);

struct AttentionWork {
  double visible_pairs = 0;  // (query row, key) pairs over the active rows of all heads
  double active_rows = 0;    // (token, head) pairs that are computed
  double kv_rows = 0;        // (key, KV head) pairs that an active row needs
  double head_dim = 0, bytes_per_element = 4;
};
// Two products forward; backward five: the scores once more, dP, dV, dQ, dK.
Work attention_forward(const AttentionWork& w);
Work attention_backward(const AttentionWork& w);

}  // namespace moh::bench
