#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moh/models/llama_config.h"

namespace moh::generate {

// Tokens that end a text: those of the folder's generation_config.json where there are any, as in transformers (chat
// models end with other tokens than their base models, whose config.json they keep), else those of config.json.
std::vector<std::int64_t> end_tokens(const std::string& folder, const models::LlamaConfig& config);

}  // namespace moh::generate
