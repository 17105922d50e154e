#include "moh/train/autocast.h"

#include <ATen/autocast_mode.h>

namespace moh::train {

Autocast::Autocast(std::optional<at::ScalarType> type, at::DeviceType device) : device_(device) {
  if (!type || *type == at::kFloat || *type == at::kDouble) return;
  active_ = true;
  was_enabled_ = at::autocast::is_autocast_enabled(device_);
  at::autocast::set_autocast_enabled(device_, true);
  at::autocast::set_autocast_dtype(device_, *type);
  at::autocast::increment_nesting();
}

Autocast::~Autocast() {
  if (!active_) return;
  // The cache of cast weights must go with the outermost scope, or later scopes would use weights of past steps.
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device_, was_enabled_);
}

}  // namespace moh::train
