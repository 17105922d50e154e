// From noise to pictures with any noise-predicting network.
//
// All noise of a picture follows from the seed and the picture's number alone, so that it does not matter which other
// pictures are made beside it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "moh/diffusion/schedule.h"

namespace moh::diffusion {

struct SamplerOptions {
  std::string sampler = "ddpm";  // ddpm: ancestral; ddim; dpm++: DPM-Solver++ (2M)
  std::string steps = "250";     // see spaced_timesteps
  double eta = 0;                // ddim: share of the random part
  double guidance = 1.0;         // 1: none
  std::int64_t guided_channels = 3;
  bool clip = false;  // keep the predicted picture within [-1, 1]
};

// What the network says of x [N, C, H, W] at 1000-step indices t [N] for labels y [N]: [N, C or 2C, H, W].
using Network = std::function<at::Tensor(const at::Tensor& x, const at::Tensor& t, const at::Tensor& y)>;

struct Pictures {
  std::vector<std::int64_t> numbers, labels;  // of each
  std::uint64_t seed = 0;
};

class Sampler {
 public:
  // Errors: an unknown sampler, steps that the process cannot be walked in, eta out of range.
  explicit Sampler(SamplerOptions options);

  std::int64_t steps() const { return schedule_.steps(); }
  // [N, C, H, W]; `no_label` is the network's label for guidance. `on_step` hears how many steps are done; when it
  // returns false the result is undefined (an empty Tensor).
  at::Tensor run(const Network& network, const std::vector<std::int64_t>& shape, const Pictures& pictures,
                 std::int64_t no_label, const std::function<bool(std::int64_t done)>& on_step,
                 at::Device device = at::kCPU) const;

 private:
  SamplerOptions options_;
  Schedule schedule_;
};

}  // namespace moh::diffusion
