// Replies of OpenAI's completions and chat completions as JSON, whole and in chunks. Torch-free.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moh/base/fields.h"

namespace moh::serve {

// One token as a reply names it.
struct NamedToken {
  std::string bytes;  // what it adds to the text; perhaps a part of a character
  std::optional<double> logprob;
  std::vector<std::pair<std::string, double>> top;  // bytes and log-probability, best first
  std::int64_t offset = 0;                          // of its text in the reply, in code points
};

struct ReplyHead {
  bool chat = false;
  std::string id, model;
  std::int64_t created = 0;
};

struct Usage {
  std::int64_t prompt_tokens = 0, completion_tokens = 0;
};

// A choice of a whole reply. `finish`: "stop" or "length". `tokens`: nullptr: no log-probabilities were asked for.
Json whole_choice(const ReplyHead& head, std::int64_t index, const std::string& text, const char* finish,
                  const std::vector<NamedToken>* tokens);
// The same of a chunk; finish: nullptr: more follows. A chat's first chunk names the role.
Json chunk_choice(const ReplyHead& head, std::int64_t index, const std::string& text, const char* finish,
                  const std::vector<NamedToken>* tokens, bool first);
Json reply_of(const ReplyHead& head, bool chunk, Json choices, const Usage* usage);

// As text in JSON: "bytes:\xf0\x9f" where it is not whole UTF-8.
std::string token_text(const std::string& bytes);
// A JSON value as it is sent.
std::string sent(const Json& json);

}  // namespace moh::serve
