#include "moh/train/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include "moh/base/error.h"
#include "moh/train/optimizer_state.h"
#include "moh/train/sharded_adamw.h"

namespace moh::train {
using at::Tensor;

AdamW::AdamW(io::NamedTensors parameters, const std::vector<bool>& decays, const AdamWOptions& options)
    : parameters_(std::move(parameters)), options_(options) {
  MOH_CHECK(decays.size() == parameters_.size(), "[adamw] ", parameters_.size(), " parameters but ", decays.size(),
            " decay flags");
  groups_ = {{options.weight_decay, {}}, {0.0, {}}};
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor& parameter = parameters_[i].second;
    first_.push_back(at::zeros_like(parameter, parameter.options().requires_grad(false)));
    second_.push_back(at::zeros_like(parameter, parameter.options().requires_grad(false)));
    steps_.push_back(at::zeros({}, parameter.options().dtype(at::kFloat).requires_grad(false)));
    groups_[decays[i] ? 0 : 1].members.push_back(i);
  }
}

std::vector<Tensor> AdamW::gradients() const {
  std::vector<Tensor> gradients;
  for (const auto& [name, parameter] : parameters_) {
    if (parameter.grad().defined()) gradients.push_back(parameter.grad());
  }
  return gradients;
}

void AdamW::scale_gradients(double factor) {
  if (factor != 1) at::_foreach_mul_(gradients(), factor);
}

double AdamW::clip_gradients(double max_norm) {
  const std::vector<Tensor> gradients = this->gradients();
  const double norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients, 2))).item<double>();
  if (max_norm > 0 && norm > max_norm) at::_foreach_mul_(gradients, max_norm / (norm + 1e-6));
  return norm;
}

void AdamW::step(double lr) {
  const c10::NoGradGuard no_grad;
  for (const Group& group : groups_) {
    std::vector<Tensor> parameters, gradients, first, second, steps;
    for (const std::size_t i : group.members) {
      const Tensor& parameter = parameters_[i].second;
      if (!parameter.grad().defined()) continue;  // a router that this batch never used
      parameters.push_back(parameter);
      gradients.push_back(parameter.grad());
      first.push_back(first_[i]);
      second.push_back(second_[i]);
      steps.push_back(steps_[i]);
    }
    if (parameters.empty()) continue;
    at::_foreach_add_(steps, 1);
    at::_fused_adamw_(parameters, gradients, first, second, /*max_exp_avg_sqs=*/{}, steps, lr, options_.beta1,
                      options_.beta2, group.weight_decay, options_.eps, /*amsgrad=*/false, /*maximize=*/false);
  }
}

void AdamW::clear_gradients() {
  for (auto& [name, parameter] : parameters_) parameter.mutable_grad() = Tensor();
}

io::NamedTensors AdamW::state() const {
  io::NamedTensors state;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    state.emplace_back("first." + parameters_[i].first, first_[i]);
    state.emplace_back("second." + parameters_[i].first, second_[i]);
    state.emplace_back("step." + parameters_[i].first, steps_[i]);
  }
  return state;
}

void AdamW::save(const std::string& folder) const {
  io::NamedTensors state = this->state();
  state.emplace_back("rng", generator_state());
  io::save_tensors(folder + "/" + optimizer_file(0, 1), state);
}

void AdamW::load(const std::string& folder) {
  const OptimizerState state(folder);
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const auto& [name, parameter] = parameters_[i];
    // Several processes keep none for what is never trained.
    if (!parameter.requires_grad() && !state.has("first." + name)) continue;
    state.read("first", name, parameter.numel(), 0, first_[i]);
    state.read("second", name, parameter.numel(), 0, second_[i]);
    steps_[i].copy_(state.whole("step." + name));
  }
  if (state.has("rng")) set_generator_state(state.whole("rng"));
}

Tensor generator_state() { return at::detail::getDefaultCPUGenerator().get_state(); }
void set_generator_state(const Tensor& state) {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  generator.set_state(state);
}

std::unique_ptr<Optimizer> make_adamw(const io::NamedTensors& parameters, const std::vector<bool>& decays,
                                      const AdamWOptions& options, const distributed::Group& group,
                                      at::ScalarType reduce) {
  if (group.alone()) return std::make_unique<AdamW>(parameters, decays, options);
  return std::make_unique<ShardedAdamW>(parameters, decays, options, group, reduce);
}

}  // namespace moh::train
