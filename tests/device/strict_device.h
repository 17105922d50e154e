// A device made for tests: LibTorch knows it as another device than the CPU (PrivateUse1), and it is as strict as a GPU
// or stricter. An operation that meets a tensor of the CPU beside one of the device is an Error, an address of the
// device ends the program that follows it, and what would make a GPU wait for the host or copy is counted. So code that
// assumes the CPU fails on a machine without a GPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moh::test {

// The device; registered with LibTorch on the first call.
at::Device strict_device();

struct Traffic {
  std::int64_t waits = 0;      // results that the host looked at: item(), copies to the CPU
  std::int64_t to_device = 0;  // copies from the CPU
};
// Since the last call.
Traffic take_traffic();

}  // namespace moh::test
