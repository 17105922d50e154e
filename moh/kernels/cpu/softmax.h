// The online softmax of forward blocks and decode, and the writing of a finished row.
#pragma once

#include <math.h>

#include "moh/kernels/cpu/work.h"

namespace moh::kernels::MOH_ISA {

struct State {  // of the online softmax of one row, base 2
  float max, sum;
};

// Softmax of one block of one row in place; rescales what was summed before. Returns the factor for the row's output.
static inline float softmax_block(float* scores, int64_t count, int64_t padded, State& state) {
  for (int64_t s = count; s < padded; ++s) scores[s] = -INFINITY;
  Vec best = splat(state.max);
  for (int64_t s = 0; s < padded; s += kWidth) best = max_of(load(scores + s), best);
  const float new_max = max_in(best);
  const float base = new_max == -INFINITY ? 0.0F : new_max;
  Vec sum = Vec{};
  for (int64_t s = 0; s < padded; s += kWidth) {
    const Vec p = exp2_of(load(scores + s) - base);
    store(scores + s, p);
    sum += p;
  }
  const float factor = exp2_of(splat(state.max - base))[0];
  state.sum = state.sum * factor + sum_in(sum);
  state.max = new_max;
  return factor;
}

static inline void rescale(float* row, int64_t padded, float factor) {
  for (int64_t d = 0; d < padded; d += kWidth) store(row + d, load(row + d) * factor);
}

// Puts out and lse of row t of a sequence.
static inline void write_output(const HeadAttentionParams& p, const Sequence& sequence, int64_t h, int64_t t,
                                const float* sums, const State& state) {
  const int64_t place = (first_row_of(p, sequence) + t) * p.num_heads + h;
  const float gate = p.selection.gates[place];
  const bool sees_none = state.max == -INFINITY;  // every visible key was hidden by the bias
  float max = state.max, total = state.sum, factor = 1;
  if (p.variant.sink != nullptr) {
    const float sink = p.variant.sink[h] * kLog2E;
    max = sink > state.max ? sink : state.max;
    factor = exp2f(state.max - max);
    total = total * factor + exp2f(sink - max);
  }
  char* out = query_row(p.out, p.dtype, sequence, t, h);
  write_row(out, p.out.stride[3], sums, p.head_dim, p.dtype, sees_none ? 0.0F : gate * factor / total);
  p.lse[place] = max == -INFINITY ? -INFINITY : (max + log2f(total)) * kLn2;
}

}  // namespace moh::kernels::MOH_ISA
