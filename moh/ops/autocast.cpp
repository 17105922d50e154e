#include "moh/ops/autocast.h"

#include <ATen/autocast_mode.h>

#include "moh/base/error.h"

namespace moh::ops {

std::optional<at::ScalarType> autocast_type(const std::string& dtype) {
  if (dtype == "fp32") return std::nullopt;
  if (dtype == "bf16") return at::kBFloat16;
  if (dtype == "fp16") return at::kHalf;
  fail("[dtype] unknown dtype `", dtype, "`; known: fp32, bf16, fp16");
}

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

}  // namespace moh::ops
