#include "moh/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moh::train {

double Schedule::operator()(std::int64_t step) const {
  if (epoch_steps > 0) step = std::max<std::int64_t>(0, step / epoch_steps - 1) * epoch_steps;
  if (step < warmup) {
    return start + (peak - start) * static_cast<double>(step) / static_cast<double>(warmup);
  }
  const std::int64_t first = epoch_steps > 0 ? 0 : warmup, last = epoch_steps > 0 ? steps : steps - 1;
  const auto span = static_cast<double>(std::max<std::int64_t>(1, last - first));
  const double progress = std::min(1.0, static_cast<double>(step - first) / span);
  return peak * (final_share + (1 - final_share) * 0.5 * (1 + std::cos(std::numbers::pi * progress)));
}

}  // namespace moh::train
