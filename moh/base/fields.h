// Plain config structs with one list of fields each. A struct X provides
//
//   template <class V> void fields(V& visit) { visit("lr", lr, "peak learning rate"); ... }
//
// and from that list come its JSON, its reading from JSON with a remedy for misspelt keys, and its command-line flags.
#pragma once

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "moh/base/error.h"

namespace moh {

using Json = nlohmann::ordered_json;

// The name in `known` nearest to `word` by edit distance, or "" when none is near.
std::string nearest_name(std::string_view word, const std::vector<std::string>& known);

// Parses text with bounded depth and no duplicate keys; throws Error "[what] ...".
Json parse_json(std::string_view text, const std::string& what, int max_depth = 64);

template <class Config>
Json to_json(const Config& config) {
  Json json = Json::object();
  auto visit = [&](const char* name, const auto& value, const char*) { json[name] = value; };
  const_cast<Config&>(config).fields(visit);
  return json;
}

template <class Config>
std::vector<std::string> field_names() {
  std::vector<std::string> names;
  Config config;
  auto visit = [&](const char* name, auto&, const char*) { names.emplace_back(name); };
  config.fields(visit);
  return names;
}

// Sets the fields present in `json`, leaves the others; with `strict` an unknown key is an error that suggests a name.
template <class Config>
void from_json(const Json& json, Config& config, const std::string& where, bool strict = true) {
  MOH_CHECK(json.is_object(), "[", where, "] expected an object, got ", json.type_name());
  auto visit = [&](const char* name, auto& value, const char*) {
    const auto found = json.find(name);
    if (found == json.end()) return;
    try {
      found->get_to(value);
    } catch (const nlohmann::json::exception&) {
      fail("[", where, "] field `", name, "` cannot be ", found->dump().substr(0, 80));
    }
  };
  config.fields(visit);
  if (!strict) return;
  const auto names = field_names<Config>();
  for (const auto& item : json.items()) {
    if (std::find(names.begin(), names.end(), item.key()) != names.end()) continue;
    const std::string near = nearest_name(item.key(), names);
    fail("[", where, "] unknown field `", item.key(), "`", near.empty() ? "" : ", did you mean `" + near + "`?");
  }
}

}  // namespace moh
