// Top-K selection of heads: scores to indices, ties to the lower index (spec: scores in fp32); and the two-stage router
// from its products on, where nobody asks for gradients.
#pragma once

#include <cstdint>

#include "moh/kernels/parallel.h"

namespace moh::kernels {

// scores [rows, num_routed] contiguous fp32; indices [rows, top_k] int64, best first. NaN counts as lowest.
// 0 <= top_k <= num_routed is the caller's duty.
void select_top_k(const float* scores, std::int64_t rows, std::int64_t num_routed, std::int64_t top_k,
                  std::int64_t* indices, const Parallel& parallel);

// The gates that follow from the products of the router's matrices with a token (formulas: moh/ops/routing.h), in one
// pass instead of some twenty over small tensors. S shared heads, E routed ones; the products of a token are those of
// wg_1 (S of them, if S > 1), wg (E) and wg_0 (2, if S > 0 and E > 0), in this order.
struct TwoStageParams {
  std::int64_t rows = 0, shared_heads = 0, num_routed = 0, top_k = 0;
  bool authors = true;              // the authors' factors S, K and 2, and routed gates renormalised; else the paper's
  const float* products = nullptr;  // [rows, products of a token]
  float* gates = nullptr;           // [rows, S + E]
  std::int64_t* indices = nullptr;  // [rows, K], best first
  float* probabilities = nullptr;   // [rows, E]
  Parallel parallel;
};
void two_stage_gates(const TwoStageParams& p);

}  // namespace moh::kernels
