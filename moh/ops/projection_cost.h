// When the head-skipping projections are faster than LibTorch's dense product with unselected heads masked.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>

namespace moh::ops {

enum class Projection { kValues, kWeightGradient };

// `rows` tokens of which each uses `share` of the heads on average; `backend` is the name of the kernels that would
// run. Decided from the shape and from what the CPU reports, never from a timing: the same call gives the same bits.
bool skipping_pays(Projection projection, const std::string& backend, std::int64_t rows, std::int64_t head_dim,
                   double share, at::ScalarType dtype);

// Overrides the choice for the process: true always skips, false never, nullopt decides by the cost again. For tests
// and benchmarks.
void force_skipping(std::optional<bool> skip);

}  // namespace moh::ops
