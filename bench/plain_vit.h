// A MoH-ViT or its dense twin step by step as the authors' PyTorch code, by LibTorch's operations alone: every head
// computed, then multiplied by its gate; convolutions on channels-first maps; position bias made anew each time. The
// same numbers, slower: a rival, and the reference that the model is checked against.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "moh/models/vit.h"

namespace moh::bench {

class PlainVit {
 public:
  // Shares the tensors of the model, which must outlive this.
  explicit PlainVit(const models::Vit& model);

  struct Output {
    at::Tensor logits;
    std::vector<at::Tensor> balance_losses;  // in training: of each layer that routes
  };
  // images [B, 3, height, width]. Drop path is left out.
  Output forward(const at::Tensor& images, bool training = false) const;

 private:
  const at::Tensor& tensor(const std::string& name) const { return tensors_.at(name); }
  at::Tensor linear(const std::string& name, const at::Tensor& x) const;
  at::Tensor norm(const std::string& name, const at::Tensor& x, double eps) const;
  at::Tensor gates(std::size_t stage, const std::string& prefix, const at::Tensor& x, Output* losses) const;
  at::Tensor aggregated(std::size_t stage, const std::string& prefix, const at::Tensor& x, const at::Tensor& gates,
                        const layers::VitPlace& place) const;
  at::Tensor full(std::size_t stage, const std::string& prefix, const at::Tensor& x, const at::Tensor& gates,
                  const layers::VitPlace& place) const;
  at::Tensor position_bias(const std::string& prefix, const layers::VitPlace& place) const;

  const models::Vit& model_;
  std::unordered_map<std::string, at::Tensor> tensors_;
};

}  // namespace moh::bench
