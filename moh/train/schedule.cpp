#include "moh/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moh::train {

double Schedule::operator()(std::int64_t step) const {
  constexpr double kStart = 1e-7;
  if (step < warmup) {
    return kStart + (peak - kStart) * static_cast<double>(step) / static_cast<double>(warmup);
  }
  const auto span = static_cast<double>(std::max<std::int64_t>(1, steps - 1 - warmup));
  const double progress = std::min(1.0, static_cast<double>(step - warmup) / span);
  return peak * (final_share + (1 - final_share) * 0.5 * (1 + std::cos(std::numbers::pi * progress)));
}

}  // namespace moh::train
