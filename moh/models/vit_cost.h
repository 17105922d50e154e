// What a MoH-ViT costs by its configuration alone.
#pragma once

#include <cstdint>

#include "moh/models/vit_config.h"

namespace moh::models {

struct VitCost {
  std::int64_t parameters = 0;
  // Without the rows and columns of query and output projections of heads that a token does not use.
  std::int64_t active_parameters = 0;
  double flops = 0;        // of one picture, forward; multiply-adds counted as 2
  double dense_flops = 0;  // with every head active and no router
  double attention_share =
      0;  // of dense_flops: query and output projections and attention, what skipping heads can save
};

VitCost vit_cost(const VitConfig& config, std::int64_t image_size);

}  // namespace moh::models
