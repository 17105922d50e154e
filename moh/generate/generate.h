// Text generation with a KV cache.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "moh/models/llama.h"
#include "moh/text/sampler.h"

namespace moh::generate {

using text::SamplingOptions;

struct GenerationResult {
  std::vector<std::int64_t> ids;  // new ids alone, without the end token
  double prompt_seconds = 0, decode_seconds = 0;
  double active_heads = 1;  // share over the decoded tokens
  bool ended = false;       // stopped by an end token or by the callback
};

// Continues `prompt` (at least one id) by at most max_tokens ids. Ends at an end token or when `on_token`, told each
// new id, returns false. Errors: prompt + max_tokens beyond the model's context.
GenerationResult generate(const models::Llama& model, const std::vector<std::int64_t>& prompt, std::int64_t max_tokens,
                          const SamplingOptions& sampling, const std::vector<std::int64_t>& end_ids,
                          const std::function<bool(std::int64_t)>& on_token = {});

}  // namespace moh::generate
