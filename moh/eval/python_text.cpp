#include "moh/eval/python_text.h"

#include <utf8proc.h>

#include <algorithm>

#include "moh/text/utf8.h"

namespace moh::eval {
namespace {

// str.isspace: White_Space of Unicode, and the four separators of ASCII.
bool is_space(std::uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

std::size_t first_size(std::string_view text) { return std::max<std::size_t>(1, text::utf8_length(text)); }

std::uint32_t first_code_point(std::string_view text) {
  const std::size_t size = text::utf8_length(text);
  return size == 0 ? 0xfffd : text::utf8_code_point(text.substr(0, size));
}

void append_lower(std::string& text, std::uint32_t c) {
  if (c == 0x130) {  // the one letter whose lower case is two
    text += "i\xcc\x87";
    return;
  }
  text::append_utf8(text, static_cast<std::uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
}

}  // namespace

std::string_view lstrip(std::string_view text) {
  while (!text.empty() && is_space(first_code_point(text))) text.remove_prefix(first_size(text));
  return text;
}

std::string_view rstrip(std::string_view text) {
  while (!text.empty()) {
    std::size_t start = text.size() - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xc0) == 0x80) --start;
    if (!is_space(first_code_point(text.substr(start)))) break;
    text.remove_suffix(text.size() - start);
  }
  return text;
}

std::string_view strip(std::string_view text) { return lstrip(rstrip(text)); }

std::string lower(std::string_view text) {
  std::string result;
  for (; !text.empty(); text.remove_prefix(first_size(text))) append_lower(result, first_code_point(text));
  return result;
}

std::string capitalize(std::string_view text) {
  if (text.empty()) return {};
  const std::uint32_t first = first_code_point(text);
  std::string result;
  if (first == 0xdf) {  // sharp s
    result = "Ss";
  } else {
    text::append_utf8(result, static_cast<std::uint32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(first))));
  }
  return result + lower(text.substr(first_size(text)));
}

std::string replace(std::string_view text, std::string_view old, std::string_view with) {
  std::string result;
  for (;;) {
    const std::size_t at = text.find(old);
    if (at == std::string_view::npos) return result.append(text);
    result.append(text.substr(0, at)).append(with);
    text.remove_prefix(at + old.size());
  }
}

std::vector<std::string_view> split(std::string_view text, std::string_view separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + separator.size());
  }
}

std::size_t count_code_points(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

bool is_word_character(char32_t c) {
  if (c == U'_') return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return true;
    default:
      return false;
  }
}

}  // namespace moh::eval
