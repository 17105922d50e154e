#include "moh/models/llama_cost.h"

#include <numeric>

#include "moh/layers/routers/router.h"
#include "moh/models/llama.h"

namespace moh::models {

LlamaCost llama_cost(const LlamaConfig& config, std::int64_t context, std::int64_t bytes_per_element) {
  LlamaCost cost;
  double matrices = 0;  // parameters of matrices that multiply every token
  const ParameterSpecs specs = llama_parameters(config);
  cost.parameters = parameter_count(specs);
  for (const ParameterSpec& spec : specs) {
    const auto count = std::accumulate(spec.shape.begin(), spec.shape.end(), std::int64_t{1}, std::multiplies<>());
    if (spec.shape.size() == 2 && spec.name != "model.embed_tokens.weight") matrices += static_cast<double>(count);
  }

  const auto heads = static_cast<double>(config.num_attention_heads), head_dim = static_cast<double>(config.head_dim);
  const double projection = static_cast<double>(config.hidden_size) * head_dim;  // Q rows or O columns of one head
  // Token t sees min(t, window) keys.
  const auto per_head = [&](std::int64_t layer) {
    const std::int64_t window = config.window(layer) > 0 ? std::min(config.window(layer), context) : context;
    const auto w = static_cast<double>(window), n = static_cast<double>(context);
    return 2 * 2 * head_dim * (w * (w + 1) / 2 + (n - w) * w) / n;
  };
  const bool skips_query = config.moh && !config.moh->router->needs_query;
  double idle_parameters = 0, attention = 0, dense_attention = 0;
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    auto active = heads;
    if (config.moh && config.moh->by_threshold()) {
      active *= config.activated_share();  // of all layers together
    } else if (config.moh) {
      active = static_cast<double>(config.shared_heads(layer) + config.top_k(layer));
    }
    idle_parameters += (heads - active) * projection * (skips_query ? 2 : 1);
    attention += active * per_head(layer);
    dense_attention += heads * per_head(layer);
  }
  cost.active_parameters = cost.parameters - static_cast<std::int64_t>(idle_parameters);
  cost.dense_flops_per_token = 2 * matrices + dense_attention;
  cost.flops_per_token = 2 * (matrices - idle_parameters) + attention;
  cost.attention_share = dense_attention / cost.dense_flops_per_token;
  cost.kv_bytes_per_token =
      2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bytes_per_element;
  return cost;
}

}  // namespace moh::models
