// config.json without its object `moh`: what llama_config.cpp uses to read and to write it.
#pragma once

#include <string>
#include <vector>

#include "moh/models/llama_config.h"

namespace moh::models {

// `convert --export hf` puts this before the family's model_type: transformers must not take such a folder for the
// dense model.
constexpr const char* kExportPrefix = "moh_";

// Sets `value` from json[key] if that is there and not null. Error: another type.
template <class T>
void read(const Json& json, const char* key, T& value, const std::string& where) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return;
  bool fits = false;
  if constexpr (std::is_same_v<T, std::string>) {
    fits = found->is_string();
    if (fits) found->get_to(value);
  } else {
    fits = detail::assign_json(*found, value);
  }
  MOH_CHECK(fits, "[", where, "] `", key, "` cannot be ", found->dump().substr(0, 80));
  found->get_to(value);
}

// `eos_token_id` of config.json or generation_config.json: none, one or a list.
std::vector<std::int64_t> parse_eos_token_id(const Json& json, const std::string& where);

// Everything but `moh`, not yet checked except for what building the configuration needs.
LlamaConfig parse_model_part(const Json& json, const std::string& where);
// config.source with the fields that differ from it; without a source, every key of the family.
Json model_part_json(const LlamaConfig& config);

}  // namespace moh::models
