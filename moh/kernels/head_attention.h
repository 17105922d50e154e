// Head-sparse attention: every token uses only the heads whose gate is not zero (paper, section 3.2).
//
//   out[t,h,:] = gate[t,h] * softmax_s(cap(scale * <query[t,h,:], key[s,h/G,:]>) + bias[h,t,s]) value[s,h/G,:]
//
// for every token t of every sequence of the call, with G = num_heads / num_kv_heads and cap(x) = c * tanh(x / c) where
// a soft cap c is given. Where the gate is zero nothing is computed and the output is exactly zero; so is a row that
// sees no key. A sink adds exp(sink[h]) to the softmax's sum and no value.
//
// One call serves sequences of any lengths: chunks of prompts beside decoding ones. The result of a sequence does not
// depend on the others, to the bit.
//
// Shapes: query, out [B, T, H, D]; gates and lse [B, T, H] contiguous; bias broadcastable to [B, H, T, S]. A sequence
// is `queries` rows of one b. Its keys and values [Hkv, D] lie in a tensor [B, S, Hkv, D], or in pages [P, page_size,
// Hkv, D] of a pool by the sequence's table; as strides may be anything (0 broadcasts), a pool laid out as
// [P, Hkv, page_size, 2 D] is two such tensors. Strides are in elements. lse = log sum exp of the row's scores, -inf
// where the row was skipped or sees no key. This header and all below it include nothing of torch.
#pragma once

#include <cstdint>

#include "moh/kernels/dtype.h"
#include "moh/kernels/parallel.h"
#include "moh/kernels/selection.h"
#include "moh/kernels/strided.h"

namespace moh::kernels {

using Input4 = Strided<const void*, 4>;  // a [B, T, H, D] tensor (bias: [B, H, T, S])
using Output4 = Strided<void*, 4>;

struct Sequence {
  std::int64_t batch = 0, first_query = 0, queries = 0;  // its queries: (batch, first_query ..) of query, out and bias
  std::int64_t keys = 0;                                 // the last query stands at the last key
  std::int64_t first_key = 0;           // without a table: key s is (batch, first_key + s) of key and value
  const std::int32_t* pages = nullptr;  // key s is (pages[s / page_size], s % page_size) of key and value
};

// The same in the memory of a GPU, where nobody waits to look at it. table: int64 [N, 6] of batch, first query,
// queries, keys, first key and the place of its first page in `pages`; the bounds hold for all N.
struct DeviceSequences {
  const std::int64_t* table = nullptr;
  const std::int32_t* pages = nullptr;
  std::int64_t max_queries = 0, max_keys = 0;
};

// Which keys a query sees, and what becomes of its scores. A query t of a sequence of T queries and S keys stands at
// position t + S - T.
struct AttentionVariant {
  bool causal = false;          // it sees keys up to its position; else all
  std::int64_t window = 0;      // > 0, with causal: only the last `window` of these
  float soft_cap = 0;           // > 0: cap
  const float* sink = nullptr;  // [H] logits
  Input4 bias;                  // data == nullptr: none
  DType bias_dtype = DType::kFloat32;

  MOH_ALWAYS_INLINE bool plain() const { return window == 0 && soft_cap == 0 && sink == nullptr; }
};

struct HeadAttentionParams {
  const Sequence* sequences = nullptr;
  std::int64_t num_sequences = 0;
  DeviceSequences device_sequences;  // on a GPU: where sequence n is not simply batch n
  std::int64_t rows_per_batch = 0;   // T: the selection's row of (b, t) is b * T + t
  std::int64_t page_size = 0;        // of sequences with a table
  std::int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  float scale = 1.0F;
  AttentionVariant variant;
  DType dtype = DType::kFloat32;  // of query, key, value, out and their gradients
  bool on_cpu = true;             // where the pointers live

  Input4 query, key, value;
  Selection selection;  // on a GPU the gates alone

  Output4 out;           // forward: written; skipped heads are written as zeros
  float* lse = nullptr;  // forward: written; backward: read

  // backward only; sequences without tables
  Input4 out_saved, grad_out;                // [B, T, H, D]
  Output4 grad_query, grad_key, grad_value;  // every element of the sequences written
  float* grad_gates = nullptr;               // [B, T, H] contiguous, every element written; nullptr: not wanted
  // [B, H, T, S] fp32, elements of a row side by side, every element of the sequences written; nullptr: not wanted
  Strided<float*, 3> grad_bias;

  Parallel parallel;
  void* stream = nullptr;  // of a GPU: the queue that the kernels go to
};

// Keys that query t of a sequence sees: first_visible <= s < visible. Neither decreases with t.
MOH_ALWAYS_INLINE std::int64_t visible_keys(const AttentionVariant& variant, const Sequence& sequence, std::int64_t t) {
  if (!variant.causal) return sequence.keys;
  const std::int64_t visible = t + sequence.keys - sequence.queries + 1;
  return visible < 0 ? 0 : visible > sequence.keys ? sequence.keys : visible;
}
MOH_ALWAYS_INLINE std::int64_t first_visible_key(const AttentionVariant& variant, const Sequence& sequence,
                                                 std::int64_t t) {
  if (variant.window == 0) return 0;
  const std::int64_t first = t + sequence.keys - sequence.queries + 1 - variant.window;
  return first < 0 ? 0 : first;
}

}  // namespace moh::kernels
