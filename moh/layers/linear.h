// The weight of a linear map as models use it: they multiply by it and never see how its numbers are stored.
//
// These are tensors in fp32, bf16 or fp16, or such stored anew for row-wise products, also in 8 or 4 bits
// (ops/packed_linear.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "moh/ops/linear.h"
#include "moh/ops/packed_linear.h"
#include "moh/ops/selection.h"

namespace moh::layers {

enum class Product {
  kFastest,  // ops::linear: whichever of LibTorch's two libraries is faster
  kPlain     // at::linear: the library that LLaMA's published figures were measured with
};

class Linear {
 public:
  Linear() = default;
  // weight [out, ...]: more dimensions than two count as one, so that a convolution of one point, or of patches that do
  // not overlap, is a linear map too. bias [out].
  explicit Linear(at::Tensor weight, std::optional<at::Tensor> bias = std::nullopt,
                  Product product = Product::kFastest);

  bool defined() const { return weight_.defined(); }
  std::int64_t outputs() const { return count_ < 0 ? weight_.size(0) : count_; }
  std::int64_t inputs() const {  // by sizes: a traced tensor has no number of elements
    std::int64_t count = 1;
    for (std::int64_t i = 1; i < weight_.dim(); ++i) count *= weight_.size(i);
    return count;
  }
  at::ScalarType dtype() const { return weight_.scalar_type(); }  // of the inputs that it multiplies
  at::Device device() const { return weight_.device(); }

  // activation(x W^T + b): x [..., in] -> [..., out].
  at::Tensor operator()(const at::Tensor& x, ops::Activation activation = ops::Activation::kNone) const;
  // The outputs as heads, of the selected ones: [..., H, D], zero elsewhere (ops::project_heads).
  at::Tensor project(const at::Tensor& x, const ops::Selection& selection) const;
  // The sum over the selected heads of [..., H, D] (ops::combine_heads).
  at::Tensor combine(const at::Tensor& heads, const ops::Selection& selection) const;

  // The same map, its weight stored anew (ops/packed_linear.h). For models that serve: no gradients. On the CPU.
  Linear packed(ops::WeightStorage storage = ops::WeightStorage::kSame) const;
  std::int64_t packed_bytes() const { return packed_ ? packed_->bytes() : 0; }
  // The same map, which knows how a file has its weight: packed() keeps these blocks where they are of its storage.
  Linear with_blocks(ops::BlockedWeight blocks) const;

  // Another number after every change of the weight or the bias in place.
  std::uint64_t version() const;
  // The map to outputs first .. first + count - 1 alone, on the same numbers.
  Linear rows(std::int64_t first, std::int64_t count) const;

 private:
  at::Tensor matrix() const;
  std::optional<at::Tensor> bias() const;

  at::Tensor weight_;
  std::optional<at::Tensor> bias_;
  std::int64_t first_ = 0, count_ = -1;  // its outputs; -1: all
  Product product_ = Product::kFastest;
  std::optional<ops::BlockedWeight> blocks_;         // of the whole weight
  std::shared_ptr<const ops::PackedWeight> packed_;  // of its own outputs
};

}  // namespace moh::layers
