// The autoencoder between pictures and latents of latent diffusion (Rombach et al. 2022): Stable Diffusion's KL-f8,
// read from its Hugging Face folder (AutoencoderKL: config.json and diffusion_pytorch_model.safetensors). Inference
// only.
//
//   encoder: conv, per level residual blocks and a stride-2 conv, residual - attention - residual, norm, conv
//            -> mean and log-variance of each latent value
//   decoder: the mirror image with nearest-neighbour upsampling
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "moh/base/fields.h"
#include "moh/io/checkpoint.h"
#include "moh/models/parameters.h"

namespace moh::models {

struct VaeConfig {
  std::int64_t in_channels = 3, out_channels = 3, latent_channels = 4, layers_per_block = 2, norm_num_groups = 32;
  std::vector<std::int64_t> block_out_channels = {128, 256, 512, 512};
  double scaling_factor = 0.18215, shift_factor = 0;
  bool mid_block_add_attention = true, use_quant_conv = true, use_post_quant_conv = true;

  // Pixels per latent value along one side.
  std::int64_t reduction() const { return std::int64_t{1} << (block_out_channels.size() - 1); }
};

// Errors: another class than AutoencoderKL, blocks or activations that Stable Diffusion's VAE does not have.
VaeConfig parse_vae_config(const Json& json, const std::string& where);

struct LatentDistribution {
  at::Tensor mean, log_variance;  // [N, latent, H / reduction, W / reduction], not scaled
};

class Vae {
 public:
  // Takes the tensors by name (those of old folders, where attention was called query, key, value, proj_attn, too); an
  // Error names what is missing, left over, or of the wrong shape.
  Vae(VaeConfig config, io::NamedTensors tensors);
  static Vae load(const std::string& folder);

  // pictures [N, in, H, W] in [-1, 1], H and W multiples of the reduction.
  LatentDistribution encode(const at::Tensor& pictures) const;
  // Latents as a diffusion model sees them: (z - shift) * scale; and pictures from them.
  at::Tensor scaled(const at::Tensor& latents) const;
  at::Tensor decode(const at::Tensor& scaled_latents) const;

  const VaeConfig& config() const { return config_; }
  // A number that tells these weights from others.
  std::string fingerprint() const;
  void to(at::Device device) { parameters_.to(device); }

 private:
  at::Tensor conv(const std::string& name, const at::Tensor& x, std::int64_t stride, std::int64_t padding) const;
  at::Tensor norm(const std::string& name, const at::Tensor& x) const;
  at::Tensor residual(const std::string& name, const at::Tensor& x) const;
  at::Tensor attention(const std::string& name, const at::Tensor& x) const;
  at::Tensor middle(const std::string& name, at::Tensor x) const;

  VaeConfig config_;
  Parameters parameters_;
};

ParameterSpecs vae_parameters(const VaeConfig& config);

}  // namespace moh::models
