#include "moh/generate/generate.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "moh/base/error.h"
#include "moh/eval/perplexity.h"

namespace moh::generate {

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {
  MOH_CHECK(options.temperature >= 0 && std::isfinite(options.temperature),
            "[generate] temperature must be at least 0, got ", options.temperature);
  MOH_CHECK(options.top_k >= 0, "[generate] top_k must be at least 0, got ", options.top_k);
  MOH_CHECK(options.top_p > 0 && options.top_p <= 1, "[generate] top_p must be in (0, 1], got ", options.top_p);
}

std::int64_t Sampler::operator()(const at::Tensor& logits) {
  const at::Tensor row = logits.detach().cpu().to(at::kDouble).contiguous();
  const double* values = row.const_data_ptr<double>();
  const std::int64_t size = row.numel();
  for (std::int64_t i = 0; i < size; ++i) {
    MOH_CHECK(!std::isnan(values[i]), "[generate] the model's logits are NaN; are there NaNs in the weights?");
  }
  const auto best = std::max_element(values, values + size);
  if (options_.temperature == 0) return best - values;

  std::vector<std::int64_t> order(size);
  std::iota(order.begin(), order.end(), 0);
  const bool truncated = options_.top_p < 1 || (options_.top_k > 0 && options_.top_k < size);
  if (truncated) {
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return values[a] > values[b]; });
    if (options_.top_k > 0) order.resize(std::min(size, options_.top_k));
  }
  std::vector<double> weights(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    weights[i] = std::exp((values[order[i]] - *best) / options_.temperature);
  }
  double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  if (options_.top_p < 1) {
    double reached = 0;
    std::size_t kept = 0;
    while (kept < weights.size() && reached < options_.top_p * total) reached += weights[kept++];
    weights.resize(std::max<std::size_t>(kept, 1));
    total = reached;
  }
  const double uniform = static_cast<double>(random_() >> 11) * 0x1.0p-53;
  double left = uniform * total;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  return order[weights.size() - 1];
}

GenerationResult generate(const models::Llama& model, const std::vector<std::int64_t>& prompt, std::int64_t max_tokens,
                          const SamplingOptions& sampling, const std::vector<std::int64_t>& end_ids,
                          const std::function<bool(std::int64_t)>& on_token) {
  const auto prompt_size = static_cast<std::int64_t>(prompt.size());
  const std::int64_t context = model.config().max_position_embeddings;
  MOH_CHECK(prompt_size > 0, "[generate] the prompt is empty and the model has no BOS token to start from");
  MOH_CHECK(max_tokens >= 0, "[generate] max_tokens must be at least 0, got ", max_tokens);
  MOH_CHECK(prompt_size + max_tokens <= context, "[generate] a prompt of ", prompt_size, " tokens and ", max_tokens,
            " new ones do not fit into the model's context of ", context);
  for (const std::int64_t id : prompt) {
    MOH_CHECK(id >= 0 && id < model.config().vocab_size, "[generate] prompt token ", id,
              " is outside the model's vocabulary of ", model.config().vocab_size);
  }
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const c10::NoGradGuard no_grad;
  Sampler sampler(sampling);
  GenerationResult result;
  models::KvCache cache = model.make_cache(1, prompt_size + max_tokens);
  const auto step = [&](const std::vector<std::int64_t>& ids) {
    const at::Tensor input = at::tensor(ids, at::TensorOptions(at::kLong)).unsqueeze(0).to(model.device());
    models::LlamaOutput output = model.forward({.ids = input, .cache = &cache, .last_only = true});
    output.logits = output.logits.cpu();  // once: the device is waited for here
    // NaN logits: name the weight that is to blame, if one is.
    if (std::isnan(output.logits.max().item<double>())) io::check_finite(model.parameters(), "generate");
    return output;
  };
  const auto start = Clock::now();
  models::LlamaOutput output = step(prompt);
  std::int64_t next = sampler(output.logits.flatten());
  result.prompt_seconds = seconds_since(start);

  const auto decode_start = Clock::now();
  double active = 0;
  std::int64_t steps = 0;
  while (static_cast<std::int64_t>(result.ids.size()) < max_tokens) {
    if (std::find(end_ids.begin(), end_ids.end(), next) != end_ids.end()) {
      result.ended = true;
      break;
    }
    result.ids.push_back(next);
    if (on_token && !on_token(next)) {
      result.ended = true;
      break;
    }
    if (static_cast<std::int64_t>(result.ids.size()) == max_tokens) break;
    output = step({next});
    active += eval::active_share(output);
    ++steps;
    next = sampler(output.logits.flatten());
  }
  result.decode_seconds = seconds_since(decode_start);
  if (steps > 0) result.active_heads = active / static_cast<double>(steps);
  return result;
}

}  // namespace moh::generate
