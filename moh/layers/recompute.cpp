#include "moh/layers/recompute.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "moh/ops/autocast.h"

namespace moh::layers {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Segment : torch::CustomClassHolder {
  std::function<std::vector<Tensor>(const std::vector<Tensor>&)> run;
  std::size_t inputs = 0, differentiable = 0;
  std::vector<Tensor> parameters;
  std::optional<at::ScalarType> autocast;
  at::DeviceType device = at::kCPU;
};

variable_list leaves(const variable_list& tensors) {
  variable_list result;
  for (const Tensor& tensor : tensors) result.push_back(tensor.detach().set_requires_grad(tensor.requires_grad()));
  return result;
}

class Recompute : public torch::autograd::Function<Recompute> {
 public:
  // `tensors`: inputs, then parameters. The segment runs as it does in the backward pass, with gradients, so that it
  // takes the same kernels and gives the same bits; what it kept for them goes at once.
  static variable_list forward(AutogradContext* context, const c10::intrusive_ptr<Segment>& segment,
                               at::TensorList tensors) {
    const variable_list inputs(tensors.begin(), tensors.begin() + static_cast<std::ptrdiff_t>(segment->inputs));
    variable_list outputs;
    {
      const c10::AutoGradMode with_gradients(true);
      outputs = segment->run(leaves(inputs));
    }
    for (Tensor& output : outputs) output = output.detach();
    context->saved_data["segment"] = c10::IValue::make_capsule(segment);
    context->save_for_backward(inputs);
    context->set_materialize_grads(false);
    context->mark_non_differentiable(
        variable_list(outputs.begin() + static_cast<std::ptrdiff_t>(segment->differentiable), outputs.end()));
    return outputs;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto segment = c10::static_intrusive_pointer_cast<Segment>(context->saved_data["segment"].toCapsule());
    const variable_list inputs = leaves(context->get_saved_variables());
    variable_list wanted;
    for (const variable_list* const list : {&inputs, static_cast<const variable_list*>(&segment->parameters)}) {
      for (const Tensor& tensor : *list) {
        if (tensor.requires_grad()) wanted.push_back(tensor);
      }
    }
    variable_list found;
    {
      const c10::AutoGradMode with_gradients(true);
      variable_list outputs;
      {
        const ops::Autocast autocast(segment->autocast, segment->device);  // not of the backward pass, as elsewhere
        outputs = segment->run(inputs);
      }
      variable_list of, from;
      for (std::size_t i = 0; i < segment->differentiable; ++i) {
        if (!gradients[i].defined() || !outputs[i].requires_grad()) continue;
        of.push_back(outputs[i]);
        from.push_back(gradients[i]);
      }
      if (!of.empty()) {
        found = torch::autograd::grad(of, wanted, from, /*retain_graph=*/std::nullopt, /*create_graph=*/false,
                                      /*allow_unused=*/true);
      }
    }
    variable_list result = {Tensor()};  // of the segment itself
    std::size_t next = 0;
    for (const variable_list* const list : {&inputs, static_cast<const variable_list*>(&segment->parameters)}) {
      for (const Tensor& tensor : *list) {
        result.push_back(tensor.requires_grad() && !found.empty() ? found[next++] : Tensor());
      }
    }
    return result;
  }
};

}  // namespace

std::vector<Tensor> recomputed(const std::function<std::vector<Tensor>(const std::vector<Tensor>&)>& run,
                               const std::vector<Tensor>& inputs, const std::vector<Tensor>& parameters,
                               std::size_t differentiable) {
  if (!at::GradMode::is_enabled()) return run(inputs);
  auto segment = c10::make_intrusive<Segment>();
  segment->run = run;
  segment->inputs = inputs.size();
  segment->differentiable = differentiable;
  segment->parameters = parameters;
  segment->device = inputs.front().device().type();
  if (at::autocast::is_autocast_enabled(segment->device)) {
    segment->autocast = at::autocast::get_autocast_dtype(segment->device);
  }
  std::vector<Tensor> tensors = inputs;
  tensors.insert(tensors.end(), parameters.begin(), parameters.end());
  return Recompute::apply(segment, at::TensorList(tensors));
}

}  // namespace moh::layers
