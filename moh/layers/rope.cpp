#include "moh/layers/rope.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numbers>

#include "moh/base/error.h"

namespace moh::layers {

using at::Tensor;

Tensor rope_inverse_frequencies(std::int64_t head_dim, double theta, const RopeScaling& scaling) {
  const Tensor exponents = at::arange(0, head_dim, 2, at::kLong).to(at::kFloat) / static_cast<double>(head_dim);
  Tensor frequencies = 1.0 / at::pow(theta, exponents);
  if (scaling.type == "default") return frequencies;
  if (scaling.type == "linear") return frequencies / scaling.factor;
  MOH_CHECK(scaling.type == "llama3", "[rope] unknown rope_scaling type `", scaling.type,
            "`, known: default, linear, llama3");
  // Llama 3.1: long waves are stretched by `factor`, short ones kept, those between interpolated.
  const double original = static_cast<double>(scaling.original_max_position_embeddings);
  const Tensor wavelengths = 2.0 * std::numbers::pi / frequencies;
  const Tensor smooth =
      (original / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  const Tensor between = (1.0 - smooth) * frequencies / scaling.factor + smooth * frequencies;
  const Tensor is_long = wavelengths > original / scaling.low_freq_factor;
  const Tensor is_short = wavelengths < original / scaling.high_freq_factor;
  return at::where(is_long, frequencies / scaling.factor, at::where(is_short, frequencies, between));
}

RopeTable rope_table(const Tensor& inverse_frequencies, const Tensor& positions) {
  const Tensor angles = positions.to(at::kFloat).unsqueeze(-1).unsqueeze(-1) * inverse_frequencies;
  return {angles.cos(), angles.sin()};
}

Tensor apply_rope(const Tensor& x, const RopeTable& table) {
  const Tensor cos = table.cos.to(x.scalar_type()), sin = table.sin.to(x.scalar_type());
  const std::int64_t turned = 2 * cos.size(-1), all = x.size(-1);
  if (turned < all) {
    return at::cat({apply_rope(x.narrow(-1, 0, turned), table), x.narrow(-1, turned, all - turned)}, -1);
  }
  const auto halves = x.chunk(2, -1);
  return at::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1);
}

}  // namespace moh::layers
