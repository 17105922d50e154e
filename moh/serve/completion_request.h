// Requests of OpenAI's completions and chat completions as JSON, every field checked. Torch-free.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "moh/base/fields.h"

namespace moh::serve {

using Prompt = std::variant<std::string, std::vector<std::int64_t>>;  // text, or token ids

struct CompletionRequest {
  std::vector<Prompt> prompts;               // completions
  Json messages;                             // chat: an array
  Json template_variables = Json::object();  // chat: `tools` and `chat_template_kwargs`, for the template
  std::optional<std::int64_t> max_tokens;
  double temperature = 1.0, top_p = 1.0;
  std::int64_t top_k = 0, n = 1;
  double presence_penalty = 0, frequency_penalty = 0, repetition_penalty = 1;
  std::vector<std::pair<std::int64_t, double>> logit_bias;
  std::optional<std::uint64_t> seed;
  std::vector<std::string> stop;
  std::int64_t logprobs = -1;  // -1: none; else how many of the best to name
  std::optional<double> activated;
  bool stream = false, include_usage = false, echo = false, ignore_eos = false;
  bool head_usage = false;  // tell which heads every token used
};

// Errors, each in one line that names the field: what it is and what it must be.
CompletionRequest parse_completion(std::string_view body);
CompletionRequest parse_chat(std::string_view body);

}  // namespace moh::serve
