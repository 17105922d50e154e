// Rotary position embedding in the rotate-half form of Hugging Face's LLaMA.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "moh/layers/rope_scaling.h"

namespace moh::layers {

// [D / 2] fp32: theta^(-2i / D), after scaling. D: the dimensions that are turned.
at::Tensor rope_inverse_frequencies(std::int64_t head_dim, double theta, const RopeScaling& scaling);

struct RopeTable {
  at::Tensor cos, sin;  // [..., 1, D / 2] fp32 for positions [...]
};
RopeTable rope_table(const at::Tensor& inverse_frequencies, const at::Tensor& positions);

// x [B, T, H, D] rotated; table of positions [T] or [B, T]. A narrower table turns the leading dimensions alone.
at::Tensor apply_rope(const at::Tensor& x, const RopeTable& table);

}  // namespace moh::layers
