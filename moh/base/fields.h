// Plain config structs with one list of fields each. A struct X provides
//
//   template <class V> void fields(V& visit) { visit("lr", lr, "peak learning rate"); ... }
//
// and from that list come its JSON, its reading from JSON with a remedy for misspelt keys, and its command-line flags.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moh/base/error.h"

namespace moh {

using Json = nlohmann::ordered_json;

// The name in `known` nearest to `word` by edit distance, or "" when none is near.
std::string nearest_name(std::string_view word, const std::vector<std::string>& known);

// Parses text with bounded depth and no duplicate keys; throws Error "[what] ...".
Json parse_json(std::string_view text, const std::string& what, int max_depth = 64);

// The same checks for a reader that needs no tree: feeds the values to `sax`, in order. Errors begin with `prefix`.
void scan_json(std::string_view text, const std::string& prefix, int max_depth, nlohmann::json_sax<Json>& sax);

namespace detail {
// nlohmann alone would turn 8.5 or true into the integer 8 or 1, and wrap numbers that are too large.
template <class T>
bool assign_json(const Json& json, T& value) {
  if constexpr (std::same_as<T, bool>) {
    if (!json.is_boolean()) return false;
  } else if constexpr (std::integral<T>) {
    const bool fits = json.is_number_unsigned()
                          ? std::in_range<T>(json.get<Json::number_unsigned_t>())
                          : json.is_number_integer() && std::in_range<T>(json.get<std::int64_t>());
    if (!fits) return false;
  } else if constexpr (std::floating_point<T>) {
    if (!json.is_number()) return false;
  } else if constexpr (requires { value.emplace_back(); }) {
    if constexpr (!std::same_as<T, Json> && !std::same_as<typename T::value_type, bool>) {
      if (!json.is_array()) return false;
      T read;
      for (const Json& item : json)
        if (!assign_json(item, read.emplace_back())) return false;
      value = std::move(read);
      return true;
    }
  }
  json.get_to(value);
  return true;
}
}  // namespace detail

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
    bool assigned = false;
    try {
      assigned = detail::assign_json(*found, value);
    } catch (const nlohmann::json::exception&) {
    }
    MOH_CHECK(assigned, "[", where, "] field `", name, "` cannot be ",
              found->dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 80));
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
