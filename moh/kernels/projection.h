// Projections between hidden states and heads that skip the heads a token did not select (paper, section 3.2: the sum
// over heads of g_i H^i W_O^i has no term, and the head no query, where g_i is zero).
//
//   project_heads    heads[r,h,d]  = sum_c x[r,c] weight[h,d,c] + bias[h,d]            where gates[r,h] != 0, else 0
//   combine_heads    x[r,c]        = sum_{h: gates[r,h] != 0} sum_d heads[r,h,d] weight[h,d,c] + bias[c]
//   weight_gradient  weight[h,d,c] = sum_{r: gates[r,h] != 0} heads[r,h,d] x[r,c]
//
// The first is W_Q and the gradient of W_O's input, the second W_O and the gradient of W_Q's input, the third the
// gradient of either weight. Gates only select here: head_attention multiplies by them.
//
// Shapes: x [R, C]; heads [R, H, D]; weight [H, D, C], by its strides either W_Q [H * D, C] or W_O [C, H * D] as they
// lie; bias contiguous. Strides are in elements and may be anything.
#pragma once

#include <cstdint>

#include "moh/kernels/dtype.h"
#include "moh/kernels/parallel.h"
#include "moh/kernels/selection.h"
#include "moh/kernels/strided.h"

namespace moh::kernels {

struct ProjectionParams {
  Selection selection;                   // R rows, H heads; on a GPU the gates alone
  std::int64_t head_dim = 0, width = 0;  // D, C
  DType dtype = DType::kFloat32;         // of every tensor but the gates
  Strided<const void*, 2> x;             // project_heads, weight_gradient
  Strided<const void*, 3> heads;         // combine_heads, weight_gradient
  Strided<const void*, 3> weight;        // project_heads, combine_heads
  const void* bias = nullptr;            // [H, D] or [C]; nullptr: none
  Strided<void*, 3> out;                 // every element written; combine_heads: strides of [R, C] in the first two
  bool on_cpu = true;                    // where the pointers live
  Parallel parallel;
  void* stream = nullptr;  // of a GPU: the queue that the kernels go to
};

}  // namespace moh::kernels
