// Mixed precision for a scope: matrix products in bf16 or fp16, weights and reductions in fp32.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

namespace moh::ops {

// "fp32": none; "bf16", "fp16". Error on other names.
std::optional<at::ScalarType> autocast_type(const std::string& dtype);

class Autocast {
 public:
  explicit Autocast(std::optional<at::ScalarType> type, at::DeviceType device = at::kCPU);  // nullopt: does nothing
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  bool active_ = false, was_enabled_ = false;
  at::DeviceType device_;
};

}  // namespace moh::ops
