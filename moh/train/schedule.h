// Learning rate over a run: linear warm-up, then a cosine down to a share of the peak (paper, language models). With
// epochs, as in the paper's vision transformers: constant through an epoch, one epoch late, the cosine as if there were
// no warm-up (spec, section 2).
#pragma once

#include <cstdint>

namespace moh::train {

struct Schedule {
  double peak = 3e-4;
  double final_share = 0.1;  // of the peak, reached at the last step
  std::int64_t warmup = 0, steps = 1;
  double start = 1e-7;  // of the warm-up
  std::int64_t epoch_steps = 0;

  // For optimizer step `step`, counted from 0.
  double operator()(std::int64_t step) const;
};

}  // namespace moh::train
