#include "moh/models/vit_cost.h"

#include <algorithm>

#include "moh/models/vit.h"

namespace moh::models {

VitCost vit_cost(const VitConfig& config, std::int64_t image_size) {
  VitCost cost;
  cost.parameters = parameter_count(vit_parameters(config));
  double always = 0, per_head = 0, active = 0, unused = 0;  // multiply-adds; unused: parameters
  double channels = 3;
  for (std::size_t i = 0; i < config.embed_dims.size(); ++i) {
    const std::int64_t side = config.map_size(i, image_size), ratio = config.sr_ratios[i];
    const std::int64_t pooled_side = std::max<std::int64_t>(1, side / ratio);
    const auto dim = static_cast<double>(config.embed_dims[i]), hidden = static_cast<double>(config.mlp_hidden(i));
    const auto heads = static_cast<double>(config.num_heads[i]), blocks = static_cast<double>(config.depths[i]);
    const auto tokens = static_cast<double>(side * side);
    const double share = static_cast<double>(config.shared_heads(i) + config.top_k(i)) / heads;
    const double kernel = i == 0 ? 49 : 9;
    always += tokens * channels * dim * kernel;
    channels = dim;
    double projections = 2 * tokens * dim * dim, scores = 0, rest = 0;  // query and output; q k^T and p v; the others
    if (ratio > 1) {
      const auto pooled = static_cast<double>(pooled_side * pooled_side);
      const auto places = static_cast<double>(config.window_size * config.window_size);
      scores = tokens * dim * (2 * pooled + 3 * places);       // the window's places also meet the learned tokens
      rest = tokens * dim * dim * 3 + pooled * dim * dim * 2;  // keys, values, the pooling convolution
    } else {
      scores = 2 * tokens * tokens * dim;
      rest = 2 * tokens * dim * dim;
    }
    const double mlp = tokens * (3 * dim * hidden + 9 * hidden);
    const double router = config.moh ? tokens * dim * (heads + 2) : 0;
    always += blocks * (rest + mlp);
    per_head += blocks * (projections + scores);
    active += blocks * ((projections + scores) * share + router);
    unused += blocks * (1 - share) * (2 * dim * dim + dim);
  }
  always += channels * static_cast<double>(config.num_classes);
  cost.active_parameters = cost.parameters - static_cast<std::int64_t>(unused);
  cost.flops = 2 * (always + active);
  cost.dense_flops = 2 * (always + per_head);
  cost.attention_share = 2 * per_head / cost.dense_flops;
  return cost;
}

}  // namespace moh::models
