// The full MoH self-attention layer in the form of the vision transformers and DiT: one qkv projection, the two-stage
// router on the layer's input, head-sparse attention, gated heads summed by the output projection.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "moh/ops/routing.h"

namespace moh::layers {

struct MohAttentionWeights {
  at::Tensor qkv_weight;                     // [3 * H * D, C], rows ordered (q, k, v) x head x D
  std::optional<at::Tensor> qkv_bias;        // [3 * H * D]
  at::Tensor proj_weight;                    // [C, H * D]
  std::optional<at::Tensor> proj_bias;       // [C]
  std::optional<at::Tensor> wg, wg_1, wg_0;  // router, see ops::route_two_stage
};

struct MohAttentionOptions {
  std::int64_t num_heads = 1, shared_heads = 1, top_k = 0;
  // Gates and load-balance loss, see ops::route_two_stage; "none": a dense layer, every gate is 1.
  std::string form = "authors";
  bool causal = false;
};

struct MohAttentionOutput {
  at::Tensor y;  // [B, T, C]
  ops::Routing routing;
  at::Tensor load_balance_loss;  // scalar; undefined when nothing is routed
};

// x [B, T, C]. Errors: shapes that do not fit one another.
MohAttentionOutput moh_attention(const at::Tensor& x, const MohAttentionWeights& weights,
                                 const MohAttentionOptions& options);

}  // namespace moh::layers
