#include "bench/row.h"

#include <charconv>
#include <cmath>
#include <cstdio>

#include "moh/base/error.h"

namespace moh::bench {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04x", static_cast<unsigned>(c));
      out += escape;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string text_of(const Row::Value& value) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* text = std::get_if<std::string>(&value)) return quoted(*text);
  if (const auto* integer = std::get_if<std::int64_t>(&value)) return std::to_string(*integer);
  const double number = std::get<double>(value);
  if (!std::isfinite(number)) return "null";
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof(digits), number).ptr};
}

}  // namespace

Row::Place Row::operator[](const std::string& name) {
  for (auto& [known, value] : values_) {
    if (known == name) return Place(value);
  }
  return Place(values_.emplace_back(name, Value()).second);
}

const Row::Value& Row::at(const std::string& name) const {
  for (const auto& [known, value] : values_) {
    if (known == name) return value;
  }
  fail("[bench] a row has no `", name, "`");
}

std::string Row::json() const {
  std::string line = "{";
  for (const auto& [name, value] : values_) {
    if (line.size() > 1) line += ',';
    line.append(quoted(name)).append(":").append(text_of(value));
  }
  return line + "}";
}

}  // namespace moh::bench
