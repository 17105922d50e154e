// Linear maps by weights that were packed once, for models that serve: a row's result does not depend on the other rows
// of the call (moh/kernels/packed_linear.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>

namespace moh::ops {

class PackedWeight {
 public:
  // weight [out, in] in fp32, bf16 or fp16, copied in its own type; bias [out].
  PackedWeight(const at::Tensor& weight, const std::optional<at::Tensor>& bias);

  std::int64_t outputs() const { return outputs_; }
  std::int64_t inputs() const { return inputs_; }
  // x [..., in] in fp32, bf16 or fp16 -> [..., out] in x's type. No gradients.
  at::Tensor apply(const at::Tensor& x) const;

 private:
  at::Tensor packed_, bias_;  // bias: fp32, undefined if there is none
  std::int64_t outputs_, inputs_;
};

// While one of these lives on a thread, ops::linear multiplies row by row there, too: the small products of routers,
// whose weights are packed anew for each of them.
class RowwiseProducts {
 public:
  RowwiseProducts();
  ~RowwiseProducts();
  RowwiseProducts(const RowwiseProducts&) = delete;
  RowwiseProducts& operator=(const RowwiseProducts&) = delete;
  static bool wanted();

 private:
  bool before_;
};

}  // namespace moh::ops
