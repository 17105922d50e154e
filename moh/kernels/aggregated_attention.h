// Aggregated attention of the vision transformers, head-sparse: a window of neighbours and pooled keys in one softmax,
// only for the heads that each token selected. With q^ = q / |q| and so on (norms clamped at 1e-12), for token n of a
// map of height x width tokens, n = y * width + x, and one head:
//
//   u   = (q^[n] + query_embedding) * temperature * position_scale[n]
//   a   = softmax([u . k^[j] + local_bias[j], u . p^[m] + pool_bias[n, m]])   places j inside the map, pooled keys m
//   t_j = q^[n] . tokens[:, j] + token_bias[j]
//   out[n] = gate * (sum_j (a_j + t_j) value[j] + sum_m a_m pool_value[m])
//
// Where the gate is zero nothing is computed and the output is zero. Letters: B batch, N = height * width, H heads, D
// head size, M pooled keys, W = window * window places of the window, row by row.
#pragma once

#include <cstdint>

#include "moh/kernels/dtype.h"
#include "moh/kernels/parallel.h"
#include "moh/kernels/selection.h"
#include "moh/kernels/strided.h"

namespace moh::kernels {

struct AggregatedAttentionParams {
  std::int64_t batch = 0, height = 0, width = 0, pooled = 0;  // pooled: M
  std::int64_t num_heads = 0, head_dim = 0, window = 3;
  DType dtype = DType::kFloat32;  // of the strided tensors
  Selection selection;            // rows are those of [B, N]

  Strided<const void*, 4> query, key, value;     // [B, N, H, D]
  Strided<const void*, 4> pool_key, pool_value;  // [B, M, H, D]
  // Contiguous fp32.
  const float* query_embedding = nullptr;  // [H, D]
  const float* temperature = nullptr;      // [H]
  const float* position_scale = nullptr;   // [N]
  const float* local_bias = nullptr;       // [H, W]
  const float* pool_bias = nullptr;        // [H, N, M]
  const float* tokens = nullptr;           // [H, D, W]
  const float* token_bias = nullptr;       // [H, W]

  Strided<void*, 4> out;  // forward: every element written

  // backward only; every element is written
  Strided<const void*, 4> grad_out;
  Strided<void*, 4> grad_query, grad_key, grad_value, grad_pool_key, grad_pool_value;
  float* grad_gates = nullptr;            // [B, N, H]
  float* grad_query_embedding = nullptr;  // and so on, shaped like the inputs
  float* grad_temperature = nullptr;
  float* grad_local_bias = nullptr;
  float* grad_pool_bias = nullptr;
  float* grad_tokens = nullptr;
  float* grad_token_bias = nullptr;

  Parallel parallel;

  std::int64_t map() const { return height * width; }
  std::int64_t places() const { return window * window; }
};

}  // namespace moh::kernels
