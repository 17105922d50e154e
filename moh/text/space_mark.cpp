#include "moh/text/space_mark.h"

#include <algorithm>

namespace moh::text {

std::string spaces_for_marks(std::string_view token) {
  std::string text;
  while (!token.empty()) {
    const std::size_t at = std::min(token.find(kSpaceMark), token.size());
    text += token.substr(0, at);
    if (at < token.size()) text += ' ';
    token.remove_prefix(std::min(at + kSpaceMark.size(), token.size()));
  }
  return text;
}

}  // namespace moh::text
