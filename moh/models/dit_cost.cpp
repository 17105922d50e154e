#include "moh/models/dit_cost.h"

#include "moh/models/dit.h"

namespace moh::models {

DitCost dit_cost(const DitConfig& config, std::int64_t tokens) {
  const auto hidden = static_cast<double>(config.hidden_size), count = static_cast<double>(tokens);
  const auto patch = static_cast<double>(config.patch_size * config.patch_size);
  const auto mlp = static_cast<double>(config.mlp_size());
  const double sinusoids = 256;
  // Once per picture: timestep MLP and modulations. Per token: patches and the last product.
  double rest = 2 * (sinusoids * hidden + hidden * hidden) + 4 * hidden * hidden;
  rest += 2 * count * hidden * patch * static_cast<double>(config.in_channels + config.out_channels());
  double heads_all = 0, heads_active = 0, attention = 0, idle_parameters = 0;
  for (std::int64_t layer = 0; layer < config.depth; ++layer) {
    const double width = static_cast<double>(config.num_heads[layer] * config.head_dim);
    const double share = static_cast<double>(config.shared_heads(layer) + config.top_k(layer)) /
                         static_cast<double>(config.num_heads[layer]);
    const double projections = 2 * 2 * count * hidden * width, scores = 2 * 2 * count * count * width;
    heads_all += projections + scores;
    heads_active += (projections + scores) * share;
    attention += scores;
    idle_parameters += 2 * hidden * width * (1 - share);
    rest += 2 * 2 * count * hidden * width;  // keys and values
    rest += 2 * 2 * count * hidden * mlp;    // MLP
    rest += 2 * 6 * hidden * hidden;         // modulation, per picture
    if (config.moh) {
      const double scored = static_cast<double>(config.num_heads[layer]) + 2;
      rest += 2 * count * hidden * scored;  // routers
    }
  }
  DitCost cost;
  cost.parameters = dit_parameter_count(config);
  cost.active_parameters = cost.parameters - static_cast<std::int64_t>(idle_parameters);
  cost.dense_flops = rest + heads_all;
  cost.flops = rest + heads_active;
  cost.attention_share = attention / cost.dense_flops;
  cost.head_share = heads_all / cost.dense_flops;
  return cost;
}

}  // namespace moh::models
