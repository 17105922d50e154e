#include "cli/config_file.h"

#include <toml++/toml.h>

#include <sstream>

#include "moh/base/error.h"
#include "moh/io/files.h"

namespace moh::cli {
namespace {

constexpr std::uint64_t kMaxBytes = 1 << 20;

Json to_json(const toml::node& node, const std::string& where) {
  if (const auto* table = node.as_table()) {
    Json json = Json::object();
    for (const auto& [key, value] : *table) json[std::string(key.str())] = to_json(value, where);
    return json;
  }
  if (const auto* array = node.as_array()) {
    Json json = Json::array();
    for (const auto& value : *array) json.push_back(to_json(value, where));
    return json;
  }
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return number->get();
  if (const auto* number = node.as_floating_point()) return number->get();
  if (const auto* flag = node.as_boolean()) return flag->get();
  fail("[config] ", where, ": dates and times mean nothing here");
}

Json parse_value(const std::string& text) {
  try {
    const toml::table table = toml::parse("v = " + text);
    return to_json(*table.get("v"), "--section.key");
  } catch (const toml::parse_error&) {
    return text;
  }
}

}  // namespace

Json read_any_toml(const std::string& path) {
  const std::string text = io::read_file(path, kMaxBytes);
  try {
    return to_json(toml::parse(text), path);
  } catch (const toml::parse_error& error) {
    fail("[config] ", path, ", line ", error.source().begin.line, ": ", error.description());
  }
}

Json read_toml(const std::string& path) {
  const Json json = read_any_toml(path);
  for (const auto& section : json.items()) {
    MOH_CHECK(section.key() == "train" || section.key() == "model" || section.key() == "moh", "[config] ", path,
              ": unknown section [", section.key(), "]; known: train, model, moh");
    MOH_CHECK(section.value().is_object(), "[config] ", path, ": `", section.key(), "` must be a section");
  }
  return json;
}

Json take_section_arguments(std::vector<std::string>& arguments) {
  Json sections = Json::object();
  std::vector<std::string> rest;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const bool ours = argument.starts_with("--model.") || argument.starts_with("--moh.");
    if (!ours) {
      rest.push_back(argument);
      continue;
    }
    const std::size_t dot = argument.find('.'), equals = argument.find('=');
    const std::string section = argument.substr(2, dot - 2), key = argument.substr(dot + 1, equals - dot - 1);
    std::string value;
    if (equals != std::string::npos) {
      value = argument.substr(equals + 1);
    } else {
      MOH_CHECK(i + 1 < arguments.size(), "[config] ", argument, " needs a value");
      value = arguments[++i];
    }
    sections[section][key] = parse_value(value);
  }
  arguments = rest;
  return sections;
}

}  // namespace moh::cli
