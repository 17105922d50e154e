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

}  // namespace moh::io
