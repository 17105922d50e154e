// A DiT by LibTorch's own operations alone: the dense twin, and the authors' form of MoH, which computes every head and
// multiplies it by its gate.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "moh/models/dit.h"

namespace moh::bench {

class PlainDit {
 public:
  // Shares the tensors of the model, dense or MoH, which must outlive this.
  explicit PlainDit(const models::Dit& model);

  // `chosen`: the heads that each layer's tokens use, as the model's own forward pass gives them, so that two runs
  // whose last bits differ choose the same heads; nullptr: Top-K of this run's own scores.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& t, const at::Tensor& y,
                     const std::vector<ops::Routing>* chosen = nullptr) const;

  // Whether attention is LibTorch's fused one, or two batched products with a softmax between.
  void set_fused(bool fused) { fused_ = fused; }

 private:
  at::Tensor linear(const std::string& name, const at::Tensor& x) const;
  at::Tensor gates(const std::string& prefix, std::int64_t layer, const at::Tensor& x,
                   const ops::Routing* chosen) const;
  at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) const;

  const models::Dit& model_;
  std::unordered_map<std::string, at::Tensor> tensors_;
  bool fused_ = true;
};

}  // namespace moh::bench
