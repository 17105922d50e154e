// DiT, the diffusion transformer with adaLN-Zero blocks, dense or MoH, on the authors' tensor names.
//
//   tokens  = patches W + positions                                    x [N, in, H, W] -> [N, T, C]
//   c       = MLP(sinusoids of t) + label table[y]                     [N, C]
//   block:  tokens += g1 * attention(LN(tokens) (1 + s1) + b1), tokens += g2 * mlp(LN(tokens) (1 + s2) + b2), where
//           (b1, s1, g1, b2, s2, g2) = SiLU(c) W + b: zero at first, so that every block begins as the identity
//   output: LN(tokens) (1 + s) + b, linear, patches put back           [N, out, H, W], noise and then variance channels
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "moh/io/checkpoint.h"
#include "moh/layers/moh_layer.h"
#include "moh/models/dit_config.h"
#include "moh/models/parameters.h"

namespace moh::models {

struct DitOutput {
  at::Tensor y;                            // [N, out, H, W] fp32
  std::vector<ops::Routing> routing;       // one per layer of a MoH model (all-shared layers have empty indices)
  std::vector<at::Tensor> balance_losses;  // if wanted: of the layers that route, in order, without beta
  at::Tensor load_balance_loss;            // their mean; undefined if there are none
};

// Every tensor of the model in the order of the authors' checkpoints. pos_embed is never trained.
ParameterSpecs dit_parameters(const DitConfig& config);
// Counts of all parameters; of those that are trained (without pos_embed).
std::int64_t dit_parameter_count(const DitConfig& config, bool trained_only = false);

// [1, rows * columns, C]: for patch (row, column) C/4 sines and C/4 cosines of the column, then as many of the row, of
// wavelengths 2 pi 10000^(4i/C).
at::Tensor dit_positions(std::int64_t hidden_size, std::int64_t rows, std::int64_t columns);
// [N, size]: cosines, then sines, of t * 10000^(-2i/size).
at::Tensor timestep_sinusoid(const at::Tensor& t, std::int64_t size);

class Dit {
 public:
  // Takes the tensors by name; an Error names what is missing, left over, or of the wrong shape.
  Dit(DitConfig config, io::NamedTensors tensors);

  // Xavier-uniform matrices, zero biases, normal(0, 0.02) embeddings; adaLN and the output layer zero.
  static Dit initialize(const DitConfig& config, std::uint64_t seed);

  // x [N, in, H, W] of any size that the patch divides; t [N] 1000-step indices; y [N] classes, num_classes: none.
  // balance_loss: wanted, training alone needs it. recompute: blocks keep their inputs alone for the backward pass.
  // Errors: wrong shapes, a label out of range.
  DitOutput forward(const at::Tensor& x, const at::Tensor& t, const at::Tensor& y, bool balance_loss = false,
                    bool recompute = false) const;
  at::Tensor embed_patches(const at::Tensor& x) const;  // [N, T, C] without positions
  at::Tensor embed_timesteps(const at::Tensor& t) const;
  at::Tensor embed_labels(const at::Tensor& y) const;

  const DitConfig& config() const { return config_; }
  const io::NamedTensors& parameters() const { return parameters_.tensors(); }
  std::vector<bool> decays() const { return parameters_.decays(); }
  at::Device device() const { return parameters_.device(); }
  void to(at::Device device);
  void set_requires_grad(bool requires_grad) { parameters_.set_requires_grad(requires_grad); }
  void save(const std::string& folder) const;  // see Parameters::save

 private:
  struct Block {
    layers::MohLayer attention;
    std::shared_ptr<const layers::Router> router;
    layers::RouterSetting setting;
    layers::Linear fc1, fc2, modulation;
  };
  void bind();
  // tokens [N, T, C] after a block. Puts the routing into `routing` and, if wanted, the load-balance loss into `loss`.
  at::Tensor run_block(const Block& block, const at::Tensor& tokens, const at::Tensor& condition, ops::Routing& routing,
                       at::Tensor* loss) const;
  at::Tensor recomputed_block(std::size_t index, const at::Tensor& tokens, const at::Tensor& condition,
                              ops::Routing& routing, at::Tensor* loss) const;
  at::Tensor positions(std::int64_t rows, std::int64_t columns) const;

  DitConfig config_;
  Parameters parameters_;
  at::Tensor positions_, labels_;
  layers::Linear patches_, time_1_, time_2_, final_modulation_, final_;
  std::vector<Block> blocks_;
};

}  // namespace moh::models
