// Learning rate over a run: linear warm-up from 1e-7, then a cosine down to a share of the peak (paper, language
// models).
#pragma once

#include <cstdint>

namespace moh::train {

struct Schedule {
  double peak = 3e-4;
  double final_share = 0.1;  // of the peak, reached at the last step
  std::int64_t warmup = 0, steps = 1;

  // For optimizer step `step`, counted from 0.
  double operator()(std::int64_t step) const;
};

}  // namespace moh::train
