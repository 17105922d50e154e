// Memory for time: a segment of a model that keeps nothing for its backward pass but its inputs, from which everything
// else is computed once more when it is needed. Gradients are the same to the bit.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace moh::layers {

// What `segment` returns for `inputs`. It runs once now and once in the backward pass, under the same autocast, and
// must do the same both times: nothing random, no settings that change in between. `parameters`: what else it computes
// with and has gradients. Only the first `differentiable` of its results have gradients.
std::vector<at::Tensor> recomputed(
    const std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>& inputs)>& segment,
    const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& parameters, std::size_t differentiable);

}  // namespace moh::layers
