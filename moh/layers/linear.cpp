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
  if (packed_) {
    auto sizes = selection.gates.sizes().vec();
    sizes.push_back(-1);
    return packed_->apply(x).view(sizes).masked_fill(selection.gates.eq(0).unsqueeze(-1), 0);
  }
  return ops::project_heads(x, matrix(), bias(), selection);
}

Tensor Linear::combine(const Tensor& heads, const ops::Selection& selection) const {
  if (packed_) return packed_->apply(heads.flatten(-2));  // unselected heads are zero already
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

Linear Linear::packed() const {
  Linear packed = *this;
  packed.packed_ = std::make_shared<const ops::PackedWeight>(matrix().detach(), bias());
  return packed;
}

}  // namespace moh::layers
