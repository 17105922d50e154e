// Templates cut into tokens, with white space around tags treated as transformers sets jinja2 up: trim_blocks (the line
// break after a tag goes) and lstrip_blocks (so does the white space before a tag that begins its line).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moh::text::jinja {

struct Token {
  enum class Kind { data, print_begin, print_end, tag_begin, tag_end, name, string, integer, number, symbol, end };
  Kind kind = Kind::end;
  std::string text;  // of a string what it stands for
  int line = 1;
  std::int64_t integer = 0;
  double number = 0;
};

// Fault: a tag or comment without an end, a character that no expression has. `line` is where it happened.
std::vector<Token> tokens_of(std::string_view source, int& line);

}  // namespace moh::text::jinja
