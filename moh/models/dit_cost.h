// What a DiT costs by its configuration alone.
#pragma once

#include <cstdint>

#include "moh/models/dit_config.h"

namespace moh::models {

struct DitCost {
  std::int64_t parameters = 0, active_parameters = 0;  // active: without what a token's unselected heads would use
  double flops = 0;            // forward pass of one picture, multiply-adds counted as 2, unselected heads left out
  double dense_flops = 0;      // the same with every head active
  double attention_share = 0;  // of dense_flops: scores and values
  // Of dense_flops: what heads can save at all, that is scores, values, query and output projections.
  double head_share = 0;
};

DitCost dit_cost(const DitConfig& config, std::int64_t tokens);

}  // namespace moh::models
