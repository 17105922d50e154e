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
#include <string>
#include <vector>

#include "moh/kernels/dtype.h"
#include "moh/kernels/parallel.h"

namespace moh::kernels {

template <class Pointer>
struct Strided4 {  // a [B, T, H, D] tensor (bias: [B, H, T, S])
  Pointer data = nullptr;
  std::int64_t stride[4] = {0, 0, 0, 0};
};
using Input4 = Strided4<const void*>;
using Output4 = Strided4<void*>;

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
};

// One way of running the operator. The table is ordered best first; `automatic` is false for backends that run only
// when asked for by name (the scalar reference).
struct Backend {
  const char* name;
  bool automatic;
  // Empty: it can. Otherwise one sentence that says why not. Called with `backward` for the direction wanted.
  std::string (*unsupported_reason)(const HeadAttentionParams& params, bool backward);
  // Empty: usable on this machine. Independent of params.
  std::string (*unavailable_reason)();
  void (*forward)(const HeadAttentionParams& params);
  void (*backward)(const HeadAttentionParams& params);
};

// avx512, avx2, portable, reference (CUDA backends join here when built).
const std::vector<Backend>& head_attention_backends();

// The backend to run, or nullptr with `reason` filled if the composite form must do it. A backend forced by name (the
// argument; if empty, force_backend(); if empty, MOH_BACKEND) that cannot run is an Error that says why. The name
// "composite" forces nullptr.
const Backend* choose_head_attention_backend(const HeadAttentionParams& params, bool backward, std::string* reason,
                                             const std::string& name = "");

// Process-wide choice by name, as --backend sets it; "" returns to automatic. Unknown names are an Error that lists the
// known ones.
void force_backend(const std::string& name);
std::string forced_backend();

}  // namespace moh::kernels
