#include "moh/train/ema.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <unordered_map>

#include "moh/base/error.h"

namespace moh::train {

using at::Tensor;

Ema::Ema(const io::NamedTensors& parameters, double decay) : parameters_(parameters), decay_(decay) {
  MOH_CHECK(decay > 0 && decay < 1, "[ema] decay must be between 0 and 1, got ", decay);
  for (const auto& [name, tensor] : parameters_) average_.emplace_back(name, tensor.detach().clone());
}

void Ema::update() {
  const c10::NoGradGuard no_grad;
  std::vector<Tensor> averages, values;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (!parameters_[i].second.requires_grad()) continue;  // frozen: the same for ever
    averages.push_back(average_[i].second);
    values.push_back(parameters_[i].second);
  }
  if (averages.empty()) return;
  at::_foreach_mul_(averages, decay_);
  at::_foreach_add_(averages, values, 1 - decay_);
}

void Ema::load(const io::NamedTensors& values) {
  const std::unordered_map<std::string, Tensor> by_name(values.begin(), values.end());
  for (auto& [name, average] : average_) {
    const auto found = by_name.find(name);
    MOH_CHECK(found != by_name.end() && found->second.sizes() == average.sizes(), "[ema] `", name,
              "` is missing from the averaged weights or has another shape");
    average.copy_(found->second);
  }
}

}  // namespace moh::train
