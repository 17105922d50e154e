// UTF-8 that may be broken: repair as other tools do it, and streams that never cut a character.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moh::text {

// Bytes of the well-formed character that `text` starts with; 0: it starts with none.
std::size_t utf8_length(std::string_view text);
std::uint32_t utf8_code_point(std::string_view character);
void append_utf8(std::string& text, std::uint32_t code_point);

bool is_utf8(std::string_view text);

// Every maximal part of a broken character becomes U+FFFD: what Python's errors="replace", Rust and the web do.
// Python's tokenizers never see broken text, so ids are equal to theirs for the text as Python reads it.
std::string repair_utf8(std::string_view text);

// Text that comes in pieces which may end inside a character. `push` returns what is complete (repaired), and keeps the
// beginning of a character for the next call; `finish` returns U+FFFD for a character that never ended.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);
  std::string finish();

 private:
  std::string kept_;
};

}  // namespace moh::text
