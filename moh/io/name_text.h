// Names from files that nobody vouches for, in error messages.
#pragma once

#include <string>
#include <string_view>

#include "moh/base/fields.h"

namespace moh::io {

// Quoted, at most 100 bytes, without control characters: fit for one line.
inline std::string name_text(std::string_view name) {
  std::string text = Json(std::string(name.substr(0, 100))).dump(-1, ' ', true, Json::error_handler_t::replace);
  if (name.size() > 100) text.insert(text.size() - 1, "...");
  return text;
}

// A message that quotes from such a file, on one line: control characters become \n, \x01 and so on.
inline std::string one_line(std::string_view message) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const char c : message) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f) {
      text += c;
    } else if (c == '\n') {
      text += "\\n";
    } else {
      text += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return text;
}

}  // namespace moh::io
