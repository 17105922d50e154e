// The device on which the operators are tested: MOH_TEST_DEVICE (scripts/gpu_check), else the CPU.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorOptions.h>

#include <cstdlib>

inline at::Device test_device() {
  const char* name = std::getenv("MOH_TEST_DEVICE");
  return name == nullptr ? at::Device(at::kCPU) : at::Device(name);
}

inline at::TensorOptions on_device(at::ScalarType type = at::kFloat) {
  return at::TensorOptions(type).device(test_device());
}
