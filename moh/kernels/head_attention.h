// Head-sparse attention: every token uses only the heads whose gate is not zero (paper, section 3.2).
//
//   out[b,t,h,:] = gates[b,t,h] * softmax_s(scale * <query[b,t,h,:], key[b,s,h/G,:]> + bias[b,h,t,s]) value[b,s,h/G,:]
//
// with G = num_heads / num_kv_heads. Where the gate is zero nothing is computed and the output is exactly zero; so is a
// row that sees no key. Causal: token t sees s <= t + S - T (the last query sees every key).
//
// Shapes: query, out [B, T, H, D]; key, value [B, S, Hkv, D]; gates [B, T, H]; bias broadcastable to [B, H, T, S];
// lse [B, H, T] contiguous fp32 = log sum exp of the row's scores, -inf where the row was skipped or sees no key.
// Strides are in elements and may be anything (0 broadcasts). This header and all below it include nothing of torch.
#pragma once

#include <cstdint>

#include "moh/kernels/dtype.h"
#include "moh/kernels/parallel.h"
#include "moh/kernels/strided.h"

namespace moh::kernels {

using Input4 = Strided<const void*, 4>;  // a [B, T, H, D] tensor (bias: [B, H, T, S])
using Output4 = Strided<void*, 4>;

struct HeadAttentionParams {
  std::int64_t batch = 0, queries = 0, keys = 0;  // B, T, S
  std::int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  bool causal = false;
  float scale = 1.0F;
  DType dtype = DType::kFloat32;  // of query, key, value, out and their gradients
  bool on_cpu = true;             // where the pointers live

  Input4 query, key, value;
  const float* gates = nullptr;  // [B, T, H] contiguous fp32
  Input4 bias;                   // data == nullptr: none; element type `dtype`

  Output4 out;           // forward: written; skipped heads are written as zeros
  float* lse = nullptr;  // forward: written; backward: read

  // backward only
  Input4 out_saved, grad_out;                // [B, T, H, D]
  Output4 grad_query, grad_key, grad_value;  // every element written
  float* grad_gates = nullptr;               // [B, T, H] contiguous, every element written; nullptr: not wanted
  float* grad_bias = nullptr;                // [B, H, T, S] contiguous fp32, every element written; nullptr: not wanted

  Parallel parallel;
  void* stream = nullptr;  // of a GPU: the queue that the kernels go to
};

}  // namespace moh::kernels
