// The dense twin of a LLaMA: the same weights, every head, by LibTorch's own operations in their fastest form. It is
// the rival of whole models, and with gates given the reference that they are checked against.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "moh/models/llama.h"

namespace moh::bench {

struct TwinCache {
  std::vector<at::Tensor> key, value;  // [B, Hkv, capacity, D] per layer
};

class DenseTwin {
 public:
  // Shares the tensors of the model.
  explicit DenseTwin(const models::Llama& model);

  struct Run {
    TwinCache* cache = nullptr;  // filled with the prompt's keys and values
    bool last_only = false;      // logits of the last token alone
    bool gated = false;          // the authors' form: the model's router multiplies every head's output
    const std::vector<at::Tensor>* gates = nullptr;  // per layer [B, T, H]: these gates instead of the router's
    // With `gated`, per layer: which gates count, so that two runs whose last bits differ choose the same heads.
    const std::vector<at::Tensor>* masks = nullptr;
  };
  struct Output {
    at::Tensor logits, last_hidden;  // [B, T or 1, V], [B, T, C]
  };
  Output forward(const at::Tensor& ids, const Run& run) const;
  TwinCache make_cache(std::int64_t batch, std::int64_t capacity) const;

  // Whether attention runs on [B, H, T, D] copies or on transposed views.
  void set_contiguous(bool contiguous) { contiguous_ = contiguous; }

 private:
  at::Tensor attention(std::int64_t layer, const at::Tensor& x, const layers::RopeTable& rope, const Run& run) const;
  const at::Tensor& weight(std::int64_t layer, const char* name) const;
  at::Tensor linear(std::int64_t layer, const char* name, const at::Tensor& x) const;

  const models::LlamaConfig& config_;
  std::unordered_map<std::string, at::Tensor> weights_;
  at::Tensor inverse_frequencies_;
  bool contiguous_ = false;
};

}  // namespace moh::bench
