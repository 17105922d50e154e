#include "moh/generate/generate.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <span>

#include "moh/base/error.h"
#include "moh/eval/perplexity.h"

namespace moh::generate {

namespace {

std::int64_t sample(text::Sampler& sampler, const at::Tensor& logits) {
  const at::Tensor row = logits.detach().cpu().to(at::kFloat).contiguous();
  return sampler(std::span(row.const_data_ptr<float>(), static_cast<std::size_t>(row.numel())));
}

}  // namespace

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
  text::Sampler sampler(sampling, prompt);
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
  std::int64_t next = sample(sampler, output.logits);
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
    next = sample(sampler, output.logits);
  }
  result.decode_seconds = seconds_since(decode_start);
  if (steps > 0) result.active_heads = active / static_cast<double>(steps);
  return result;
}

}  // namespace moh::generate
