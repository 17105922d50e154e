// Top-K selection of heads: scores to indices, ties to the lower index (spec: scores in fp32).
#pragma once

#include <cstdint>

#include "moh/kernels/parallel.h"

namespace moh::kernels {

// scores [rows, num_routed] contiguous fp32; indices [rows, top_k] int64, best first. NaN counts as lowest.
// 0 <= top_k <= num_routed is the caller's duty.
void select_top_k(const float* scores, std::int64_t rows, std::int64_t num_routed, std::int64_t top_k,
                  std::int64_t* indices, const Parallel& parallel);

}  // namespace moh::kernels
