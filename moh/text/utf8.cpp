#include "moh/text/utf8.h"

#include <cstring>

namespace moh::text {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

struct Start {
  std::size_t size = 1;      // bytes of the well-formed character or of the maximal part of one
  bool complete = false;     // a whole character
  bool could_go_on = false;  // the text ended inside a character
};

// The table of well-formed sequences (Unicode, table 3-7): only the second byte has a range of its own.
Start start_of(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {1, true, false};
  const std::size_t size = lead >= 0xc2 && lead <= 0xdf   ? 2
                           : lead >= 0xe0 && lead <= 0xef ? 3
                           : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                          : 0;
  if (size == 0) return {1, false, false};
  const unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (std::size_t i = 1; i < size; ++i) {
    if (i == text.size()) return {i, false, true};
    if (byte(i) < (i == 1 ? low : 0x80u) || byte(i) > (i == 1 ? high : 0xbfu)) return {i, false, false};
  }
  return {size, true, false};
}

// Length of the well-formed beginning.
std::size_t valid_prefix(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    std::uint64_t eight;
    if (text.size() - at >= 8 && (std::memcpy(&eight, text.data() + at, 8), (eight & 0x8080808080808080u) == 0)) {
      at += 8;
      continue;
    }
    const Start start = start_of(text.substr(at));
    if (!start.complete) break;
    at += start.size;
  }
  return at;
}

}  // namespace

std::size_t utf8_length(std::string_view text) {
  if (text.empty()) return 0;
  const Start start = start_of(text);
  return start.complete ? start.size : 0;
}

std::uint32_t utf8_code_point(std::string_view character) {
  const auto byte = [&](std::size_t i) { return std::uint32_t{static_cast<unsigned char>(character[i])}; };
  switch (character.size()) {
    case 1:
      return byte(0);
    case 2:
      return (byte(0) & 0x1f) << 6 | (byte(1) & 0x3f);
    case 3:
      return (byte(0) & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
    default:
      return (byte(0) & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
  }
}

void append_utf8(std::string& text, std::uint32_t code_point) {
  const auto add = [&](std::uint32_t byte) { text += static_cast<char>(byte); };
  if (code_point < 0x80) {
    add(code_point);
  } else if (code_point < 0x800) {
    add(0xc0 | code_point >> 6);
    add(0x80 | (code_point & 0x3f));
  } else if (code_point < 0x10000) {
    add(0xe0 | code_point >> 12);
    add(0x80 | (code_point >> 6 & 0x3f));
    add(0x80 | (code_point & 0x3f));
  } else {
    add(0xf0 | code_point >> 18);
    add(0x80 | (code_point >> 12 & 0x3f));
    add(0x80 | (code_point >> 6 & 0x3f));
    add(0x80 | (code_point & 0x3f));
  }
}

bool is_utf8(std::string_view text) { return valid_prefix(text) == text.size(); }

std::string repair_utf8(std::string_view text) {
  std::string repaired;
  repaired.reserve(text.size());
  while (!text.empty()) {
    const std::size_t valid = valid_prefix(text);
    repaired += text.substr(0, valid);
    text.remove_prefix(valid);
    if (text.empty()) break;
    repaired += kReplacement;
    text.remove_prefix(start_of(text).size);
  }
  return repaired;
}

std::string Utf8Stream::push(std::string_view bytes) {
  kept_ += bytes;
  // Only the last three bytes can be the beginning of a character.
  std::size_t end = kept_.size();
  for (std::size_t back = 1; back <= 3 && back <= kept_.size(); ++back) {
    const std::size_t at = kept_.size() - back;
    if ((static_cast<unsigned char>(kept_[at]) & 0xc0) == 0x80) continue;  // inside a character
    if (start_of(std::string_view(kept_).substr(at)).could_go_on) end = at;
    break;
  }
  std::string ready = repair_utf8(std::string_view(kept_).substr(0, end));
  kept_.erase(0, end);
  return ready;
}

std::string Utf8Stream::finish() {
  std::string rest = repair_utf8(kept_);
  kept_.clear();
  return rest;
}

}  // namespace moh::text
