// Rows of token ids of different lengths as one forward pass, and the limits of a batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <vector>

#include "moh/layers/linear.h"
#include "moh/models/llama.h"

namespace moh::eval {

using Ids = std::vector<std::int64_t>;

// Thrown out of a computation once `cancelled` is true.
struct Cancelled {};

struct BatchOptions {
  std::int64_t tokens = 512;  // of a forward pass, more only where one sequence is longer
  std::function<bool()> cancelled = {};
};

void stop_if(const std::function<bool()>& cancelled);

// Rows padded on their right. past[r] tokens of row r are in a cache whose rows hold `cached` each; what lies between
// is padding and is masked.
struct RowBatch {
  RowBatch(const std::vector<Ids>& rows, const std::vector<std::int64_t>& past, std::int64_t cached, at::Device device);

  at::Tensor ids;                             // [B, T]
  std::optional<at::Tensor> positions, mask;  // only where some row has padding in the cache
  at::Tensor real;                            // which of the B * T are no padding
};

// A layer that sees a window of keys counts padding as keys.
bool has_windows(const models::Llama& model);
// Logits [N, V] of some rows [N, C] of LlamaOutput::last_hidden, as the model itself makes them.
class OutputHead {
 public:
  explicit OutputHead(const models::Llama& model);
  at::Tensor operator()(const at::Tensor& hidden) const;

 private:
  const models::LlamaConfig& config_;
  layers::Linear head_;
};
// How many sequences of this length may be in a cache at once: at least one.
std::int64_t max_cache_rows(const models::Llama& model, std::int64_t length);

}  // namespace moh::eval
