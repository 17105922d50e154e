#include "moh/layers/linear.h"

#include <ATen/ATen.h>

#include "moh/ops/projection.h"

namespace moh::layers {

using at::Tensor;

Linear::Linear(Tensor weight, std::optional<Tensor> bias, Product product)
    : weight_(std::move(weight)), bias_(std::move(bias)), product_(product) {}

// Made for every product: a view made once would be cut off from the gradients that the weight gets later.
Tensor Linear::matrix() const {
  const Tensor matrix = weight_.dim() == 2 ? weight_ : weight_.flatten(1);
  return count_ < 0 ? matrix : matrix.narrow(0, first_, count_);
}

std::optional<Tensor> Linear::bias() const { return bias_ && count_ >= 0 ? bias_->narrow(0, first_, count_) : bias_; }

Tensor Linear::operator()(const Tensor& x, ops::Activation activation) const {
  if (packed_) {
    const Tensor y = packed_->apply(x);
    if (activation == ops::Activation::kNone) return y;
    return at::gelu(y, activation == ops::Activation::kGeluTanh ? "tanh" : "none");
  }
  if (product_ == Product::kPlain && activation == ops::Activation::kNone) return at::linear(x, matrix(), bias());
  return ops::linear(x, matrix(), bias(), activation);
}

Tensor Linear::project(const Tensor& x, const ops::Selection& selection) const {
  if (packed_) return packed_->project(x, selection);
  return ops::project_heads(x, matrix(), bias(), selection);
}

Tensor Linear::combine(const Tensor& heads, const ops::Selection& selection) const {
  if (packed_) return packed_->combine(heads, selection);
  return ops::combine_heads(heads, matrix(), bias(), selection);
}

std::uint64_t Linear::version() const {
  return static_cast<std::uint64_t>(weight_._version()) << 32 | (bias_ ? bias_->_version() : 0);
}

Linear Linear::rows(std::int64_t first, std::int64_t count) const {
  Linear part = *this;
  part.first_ = first_ + first;
  part.count_ = count;
  part.packed_ = nullptr;
  return part;
}

Linear Linear::packed(ops::WeightStorage storage) const {
  Linear packed = *this;
  if (blocks_ && ops::stores(storage, blocks_->kind)) {
    const ops::BlockedWeight own{count_ < 0 ? blocks_->bytes : blocks_->bytes.narrow(0, first_, count_), blocks_->kind};
    packed.packed_ = std::make_shared<const ops::PackedWeight>(own, inputs(), bias());
  } else {
    packed.packed_ = std::make_shared<const ops::PackedWeight>(matrix().detach(), bias(), storage);
  }
  return packed;
}

Linear Linear::with_blocks(ops::BlockedWeight blocks) const {
  Linear known = *this;
  known.blocks_ = std::move(blocks);
  return known;
}

}  // namespace moh::layers
