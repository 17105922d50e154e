// Where a diffusion model's training examples come from: pictures in [-1, 1], or their latents.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace moh::data {

class PictureSource {
 public:
  virtual ~PictureSource() = default;
  virtual std::int64_t size() const = 0;
  virtual std::vector<std::int64_t> shape() const = 0;  // [C, H, W]
  virtual const std::vector<std::string>& classes() const = 0;
  virtual std::int64_t label(std::int64_t index) const = 0;
  // x_0 [C, H, W] fp32, mirrored if `flip`; a latent is drawn from its distribution with `random`.
  virtual at::Tensor example(std::int64_t index, bool flip, const at::Generator& random) const = 0;
};

// Pictures held in memory as bytes.
class PixelSource : public PictureSource {
 public:
  // pixels [N, 3, S, S] uint8; labels [N].
  PixelSource(at::Tensor pixels, std::vector<std::int64_t> labels, std::vector<std::string> classes);
  std::int64_t size() const override { return pixels_.size(0); }
  std::vector<std::int64_t> shape() const override { return pixels_.sizes().slice(1).vec(); }
  const std::vector<std::string>& classes() const override { return classes_; }
  std::int64_t label(std::int64_t index) const override { return labels_[index]; }
  at::Tensor example(std::int64_t index, bool flip, const at::Generator& random) const override;

 private:
  at::Tensor pixels_;
  std::vector<std::int64_t> labels_;
  std::vector<std::string> classes_;
};

}  // namespace moh::data
