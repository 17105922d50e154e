// AdamW over named parameters with LibTorch's fused update, weight decay on the tensors that ask for it.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "moh/io/checkpoint.h"

namespace moh::train {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
};

class AdamW {
 public:
  // decays[i]: weight decay applies to parameters[i].
  AdamW(io::NamedTensors parameters, const std::vector<bool>& decays, const AdamWOptions& options);

  // Scales gradients so that their joint L2 norm is at most max_norm (0: no clipping); returns the norm before.
  double clip_gradients(double max_norm);
  void scale_gradients(double factor);
  void step(double lr);
  void clear_gradients();

  // Moments and step counts, to save and to load.
  io::NamedTensors state() const;
  void load_state(const io::NamedTensors& state);

 private:
  struct Group {
    double weight_decay;
    std::vector<std::size_t> members;
  };
  std::vector<at::Tensor> gradients() const;

  io::NamedTensors parameters_;
  std::vector<at::Tensor> first_, second_, steps_;
  std::vector<Group> groups_;
  AdamWOptions options_;
};

}  // namespace moh::train
