#include "moh/models/llama_routing.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "moh/base/error.h"

namespace moh::models {

std::optional<layers::ChoiceOrder> choice_order(const LlamaConfig& config, std::int64_t layer, at::Device device) {
  if (!config.moh || config.moh->head_order.empty()) return std::nullopt;
  const std::vector<std::int64_t>& heads = config.moh->head_order[layer];
  const std::int64_t group = config.heads_per_choice(), count = static_cast<std::int64_t>(heads.size()) / group;
  std::vector<std::int64_t> order(count), place(count);
  for (std::int64_t i = 0; i < count; ++i) {
    order[i] = heads[i * group] / group;
    place[order[i]] = i;
  }
  const at::TensorOptions options(at::kLong);
  return layers::ChoiceOrder{at::tensor(order, options).to(device), at::tensor(place, options).to(device)};
}

layers::RouterSetting router_setting(const LlamaConfig& config, std::int64_t layer, const layers::ChoiceOrder* order) {
  const MohConfig& moh = *config.moh;
  layers::RouterSetting setting;
  setting.hidden = config.hidden_size;
  setting.group = config.heads_per_choice();
  setting.choices = config.num_attention_heads / setting.group;
  setting.shared = moh.shared_heads[layer] / setting.group;
  setting.top_k = moh.top_k[layer] / setting.group;
  setting.select = moh.select;
  setting.gates = moh.gates;
  setting.balance = moh.balance;
  setting.straight_through = moh.straight_through;
  setting.order = order;
  setting.layer = layer;
  setting.own = &moh.own;
  return setting;
}

void set_top_k(LlamaConfig& config, std::int64_t top_k) {
  MOH_CHECK(config.moh.has_value(), "[top_k] the model is dense, it has no routed heads; convert it first");
  MOH_CHECK(!config.moh->by_threshold(),
            "[top_k] the model's heads are chosen by threshold, their number varies; set a share (--activated)");
  const std::int64_t group = config.heads_per_choice(), heads = config.num_attention_heads;
  MOH_CHECK(top_k >= 0 && top_k <= heads && top_k % group == 0, "[top_k] must be in 0..", heads, " in steps of ", group,
            ", got ", top_k);
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::int64_t shared = config.moh->shared_heads[layer];
    MOH_CHECK(shared + top_k > 0, "[top_k] 0 leaves layer ", layer, " without a head, it has no shared ones");
    config.moh->top_k[layer] = std::min(top_k, heads - shared);
  }
}

void set_activated_share(LlamaConfig& config, double activated) {
  MOH_CHECK(config.moh.has_value(),
            "[activated] the model is dense, all its heads are always active; convert it first");
  MOH_CHECK(activated > 0 && activated <= 1, "[activated] must be in (0, 1], got ", activated);
  if (config.moh->by_threshold()) {
    config.moh->own["activated"] = activated;
    return;
  }
  const std::int64_t group = config.heads_per_choice(), heads = config.num_attention_heads;
  const double share = config.activated_share();
  const auto least = [&](std::int64_t layer) { return std::max(group, config.moh->shared_heads[layer]); };
  double least_share = 0;
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer)
    least_share += static_cast<double>(least(layer));
  least_share /= static_cast<double>(heads * config.num_hidden_layers);
  const bool up = activated >= share;
  const double way = up ? (share < 1 ? (activated - share) / (1 - share) : 0)
                        : (share > least_share ? std::min(1.0, (share - activated) / (share - least_share)) : 1);
  // Whole choices: every layer's number is rounded down, and what the total lacks goes to the largest remainders.
  std::vector<std::int64_t> active;
  std::vector<std::pair<double, std::int64_t>> remainders;
  double wanted = 0;
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const double now = static_cast<double>(config.moh->shared_heads[layer] + config.moh->top_k[layer]);
    const double end = static_cast<double>(up ? heads : least(layer));
    const double target = (now + way * (end - now)) / static_cast<double>(group);
    wanted += target;
    active.push_back(static_cast<std::int64_t>(target + 1e-9));
    remainders.emplace_back(static_cast<double>(active.back()) - target, layer);
  }
  std::sort(remainders.begin(), remainders.end());
  std::int64_t lacking = std::llround(wanted);
  for (const std::int64_t count : active) lacking -= count;
  for (std::int64_t i = 0; i < lacking; ++i) ++active[remainders[i].second];
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    config.moh->top_k[layer] = std::max(active[layer] * group, least(layer)) - config.moh->shared_heads[layer];
  }
}

}  // namespace moh::models
