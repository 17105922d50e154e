// torch's fused attention kernels one by one: which is fastest differs between GPUs and shapes, and the rival of a
// benchmark is the fastest.
#pragma once

#include <c10/core/Device.h>

#include <string>
#include <vector>

namespace moh::bench {

// Names for SdpaChoice: "" (torch's own choice) on a CPU; on a GPU also cudnn, flash, efficient.
std::vector<std::string> sdpa_kernels(at::Device device);

// For its lifetime scaled_dot_product_attention may use this kernel alone, and throws c10::Error where it cannot. "":
// any.
class SdpaChoice {
 public:
  explicit SdpaChoice(const std::string& kernel);
  ~SdpaChoice();
  SdpaChoice(const SdpaChoice&) = delete;
  SdpaChoice& operator=(const SdpaChoice&) = delete;

 private:
  bool active_, cudnn_ = false, flash_ = false, efficient_ = false, math_ = false;
};

}  // namespace moh::bench
