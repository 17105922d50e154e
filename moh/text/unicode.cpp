#include "moh/text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "moh/base/error.h"
#include "moh/text/utf8.h"

namespace moh::text {
namespace {

// Below these bytes every character is its own normal form: U+0300 begins with 0xcc; the first character with a
// decomposition is U+00A0, which begins with 0xc2.
unsigned char first_changing_byte(NormalForm form) { return form == NormalForm::nfc ? 0xcc : 0xc2; }

// Longest part normalised at once; a character needs 4 bytes meanwhile.
constexpr std::size_t kPart = 1 << 16;

// A place to cut: before an ASCII character, with which nothing before it can join or change places.
std::size_t part_size(std::string_view text) {
  if (text.size() <= kPart) return text.size();
  std::size_t at = kPart;
  while (at < text.size() && static_cast<unsigned char>(text[at]) >= 0x80) ++at;
  return at;
}

using CodePoints = std::vector<utf8proc_int32_t>;

void append_decomposed(std::string_view text, utf8proc_option_t options, CodePoints& points) {
  constexpr std::size_t kLongest = 32;  // no character decomposes into more than 18
  while (!text.empty()) {
    const std::string_view character = text.substr(0, std::max<std::size_t>(utf8_length(text), 1));
    text.remove_prefix(character.size());
    const std::size_t size = points.size();
    points.resize(size + kLongest);
    int boundary = 0;  // only of use to other options
    const utf8proc_ssize_t count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(utf8_code_point(character)), points.data() + size,
                                static_cast<utf8proc_ssize_t>(kLongest), options, &boundary);
    MOH_CHECK(count >= 0 && count <= static_cast<utf8proc_ssize_t>(kLongest),
              "[tokenizer] cannot normalise the text: ", utf8proc_errmsg(count));
    points.resize(size + static_cast<std::size_t>(count));
  }
}

// Combining marks in their canonical order. utf8proc_map would do it too, in quadratic time: a megabyte of marks took
// minutes.
void order_marks(CodePoints& points) {
  const auto mark_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  const auto is_mark = [&](utf8proc_int32_t c) { return mark_class(c) != 0; };
  for (auto begin = points.begin(); begin != points.end();) {
    begin = std::find_if(begin, points.end(), is_mark);
    const auto end = std::find_if_not(begin, points.end(), is_mark);
    if (end - begin > 1) {
      std::stable_sort(begin, end, [&](auto left, auto right) { return mark_class(left) < mark_class(right); });
    }
    begin = end;
  }
}

}  // namespace

bool is_white_space(std::uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool is_word(std::uint32_t c) {
  if (c == 0x200c || c == 0x200d) return true;  // joiners
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

std::string normalize(std::string_view text, NormalForm form) {
  const unsigned char limit = first_changing_byte(form);
  const auto stays = [&](std::string_view part) {
    return std::all_of(part.begin(), part.end(), [&](char c) { return static_cast<unsigned char>(c) < limit; });
  };
  const bool composes = form == NormalForm::nfc || form == NormalForm::nfkc;
  const bool compatible = form == NormalForm::nfkc || form == NormalForm::nfkd;
  const auto options = static_cast<utf8proc_option_t>(
      UTF8PROC_STABLE | (composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) | (compatible ? UTF8PROC_COMPAT : 0));
  std::string result;
  result.reserve(text.size());
  CodePoints points;
  while (!text.empty()) {
    const std::string_view part = text.substr(0, part_size(text));
    text.remove_prefix(part.size());
    if (stays(part)) {
      result += part;
      continue;
    }
    points.clear();
    append_decomposed(part, options, points);
    order_marks(points);
    const utf8proc_ssize_t size =
        utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()), options);
    MOH_CHECK(size >= 0, "[tokenizer] cannot normalise the text: ", utf8proc_errmsg(size));
    points.resize(static_cast<std::size_t>(size));
    for (const utf8proc_int32_t point : points) append_utf8(result, static_cast<std::uint32_t>(point));
  }
  return result;
}

}  // namespace moh::text
