// What updates the parameters: AdamW with weight decay on the tensors that ask for it, in one process (LibTorch's fused
// update of whole tensors) or spread over several (sharded_adamw.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "moh/distributed/group.h"
#include "moh/io/checkpoint.h"

namespace moh::train {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
};

// A step: begin_last_backward, that backward pass, scale_gradients, clip_gradients, then step or nothing, and
// clear_gradients. In a group all processes do the same.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  // The next backward pass is the step's last: gradients may be sent as soon as they are there.
  virtual void begin_last_backward() {}
  virtual void scale_gradients(double factor) = 0;
  // Scales gradients so that their joint L2 norm is at most max_norm (0: no clipping); returns the norm before.
  virtual double clip_gradients(double max_norm) = 0;
  virtual void step(double lr) = 0;
  virtual void clear_gradients() = 0;

  // Moments and step counts: what this process keeps goes into files of a checkpoint's folder. Any number of processes
  // can load what any other number saved.
  virtual void save(const std::string& folder) const = 0;
  virtual void load(const std::string& folder) = 0;
};

// In one process.
class AdamW : public Optimizer {
 public:
  // decays[i]: weight decay applies to parameters[i].
  AdamW(io::NamedTensors parameters, const std::vector<bool>& decays, const AdamWOptions& options);
  void scale_gradients(double factor) override;
  double clip_gradients(double max_norm) override;
  void step(double lr) override;
  void clear_gradients() override;
  void save(const std::string& folder) const override;
  void load(const std::string& folder) override;
  io::NamedTensors state() const;

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

// AdamW for the group. `reduce`: the type in which processes send gradients.
std::unique_ptr<Optimizer> make_adamw(const io::NamedTensors& parameters, const std::vector<bool>& decays,
                                      const AdamWOptions& options, const distributed::Group& group,
                                      at::ScalarType reduce);

}  // namespace moh::train
