// Dynamic loss scaling for fp16: small gradients would round to zero there, so the loss is multiplied before the
// backward pass and the gradients are divided by the same number after it. Where they overflow, the step is left out
// and the scale halved; it doubles after many steps without. Powers of two, so that scaling itself never rounds.
#pragma once

#include <cstdint>

namespace moh::train {

struct LossScale {
  static constexpr double kFirst = 65536;
  static constexpr std::int64_t kGrowAfter = 2000;  // steps in a row

  double value = 1;  // 1 and never another unless `dynamic`
  std::int64_t good_steps = 0, skipped_steps = 0;
  bool dynamic = false;

  static LossScale of(bool dynamic) { return {.value = dynamic ? kFirst : 1.0, .dynamic = dynamic}; }

  // Whether gradients that are not finite may be the scale's fault. Otherwise they are an error.
  bool can_shrink() const { return dynamic && value > 1; }
  void shrink() {
    value /= 2;
    good_steps = 0;
    ++skipped_steps;
  }
  void grow_if_due() {
    if (!dynamic || ++good_steps < kGrowAfter) return;
    good_steps = 0;
    if (value < kFirst * kFirst) value *= 2;
  }
};

}  // namespace moh::train
