// What a LLaMA costs by its configuration alone: parameters, operations and memory per token.
#pragma once

#include <cstdint>

#include "moh/models/llama_config.h"

namespace moh::models {

struct LlamaCost {
  std::int64_t parameters = 0;
  // Parameters that one token's forward pass needs: rows and columns of projections that belong to heads it does not
  // use are left out (norm router: of the output projection; two-stage router: of the query projection too).
  std::int64_t active_parameters = 0;
  double flops_per_token = 0;  // forward, multiply-adds counted as 2, attention over `context` tokens, mean position
  double dense_flops_per_token = 0;  // the same with every head active
  double attention_share = 0;        // of dense_flops_per_token: scores and values
  std::int64_t kv_bytes_per_token = 0;
};

LlamaCost llama_cost(const LlamaConfig& config, std::int64_t context, std::int64_t bytes_per_element);

}  // namespace moh::models
