// The layer in the form of the vision transformers and DiT on tensors alone: one qkv projection, the two-stage router,
// plain attention. torch.ops.moh.moh_attention.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "moh/layers/moh_layer.h"

namespace moh::layers {

struct MohAttentionWeights {
  Linear qkv;                                // [3 * H * D, C], rows ordered (q, k, v) x head x D
  Linear proj;                               // [C, H * D]
  std::optional<at::Tensor> wg, wg_1, wg_0;  // router, see ops::route_two_stage
};

struct MohAttentionOptions {
  std::int64_t num_heads = 1, shared_heads = 1, top_k = 0;
  GateForm form = GateForm::kAuthors;  // of gates and load-balance loss
  bool dense = false;                  // without a router
  bool causal = false;
};

// x [B, T, C]. Errors: shapes that do not fit one another.
MohLayerOutput moh_attention(const at::Tensor& x, const MohAttentionWeights& weights,
                             const MohAttentionOptions& options);

}  // namespace moh::layers
