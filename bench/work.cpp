#include "bench/work.h"

#include <algorithm>

namespace moh::bench {

double least_ms(const std::vector<Work>& steps, const Limits& limits) {
  double ms = 0;
  for (const Work& step : steps) {
    ms += std::max(step.flops / (limits.gemm_gflops * 1e6), step.bytes / (limits.read_gbs * 1e6));
  }
  return ms;
}

Work total(const std::vector<Work>& steps) {
  Work sum;
  for (const Work& step : steps) {
    sum.flops += step.flops;
    sum.bytes += step.bytes;
  }
  return sum;
}

Work matrix_product(double m, double k, double n, double bytes_per_element) {
  return {2 * m * k * n, (m * k + k * n + m * n) * bytes_per_element};
}

Work with_gradients(const Work& product) { return {3 * product.flops, 3 * product.bytes}; }

Work attention_forward(const AttentionWork& w) {
  const double rows = 2 * w.active_rows + 2 * w.kv_rows;  // query, out; key, value
  return {2 * 2 * w.visible_pairs * w.head_dim, rows * w.head_dim * w.bytes_per_element};
}

Work attention_backward(const AttentionWork& w) {
  const double rows = 4 * w.active_rows + 4 * w.kv_rows;  // query, out and their gradients; key, value and theirs
  return {5 * 2 * w.visible_pairs * w.head_dim, rows * w.head_dim * w.bytes_per_element};
}

}  // namespace moh::bench
