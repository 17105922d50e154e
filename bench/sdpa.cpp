#include "bench/sdpa.h"

#include <ATen/Context.h>

namespace moh::bench {
namespace {

void allow(bool cudnn, bool flash, bool efficient, bool math) {
  at::Context& context = at::globalContext();
  context.setSDPUseCuDNN(cudnn);
  context.setSDPUseFlash(flash);
  context.setSDPUseMemEfficient(efficient);
  context.setSDPUseMath(math);
}

}  // namespace

std::vector<std::string> sdpa_kernels(at::Device device) {
  if (device.is_cpu()) return {""};
  return {"", "cudnn", "flash", "efficient"};
}

SdpaChoice::SdpaChoice(const std::string& kernel) : active_(!kernel.empty()) {
  if (!active_) return;
  const at::Context& context = at::globalContext();
  cudnn_ = context.userEnabledCuDNNSDP();
  flash_ = context.userEnabledFlashSDP();
  efficient_ = context.userEnabledMemEfficientSDP();
  math_ = context.userEnabledMathSDP();
  allow(kernel == "cudnn", kernel == "flash", kernel == "efficient", false);
}

SdpaChoice::~SdpaChoice() {
  if (active_) allow(cudnn_, flash_, efficient_, math_);
}

}  // namespace moh::bench
