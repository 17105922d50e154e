// What Python's str methods do to text, where prompts and scores of lm-evaluation-harness depend on it. Text is
// well-formed UTF-8.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace moh::eval {

std::string_view strip(std::string_view text);
std::string_view lstrip(std::string_view text);
std::string_view rstrip(std::string_view text);
std::string lower(std::string_view text);
// First character in title case, the others in lower case.
std::string capitalize(std::string_view text);
// Every occurrence, from left to right.
std::string replace(std::string_view text, std::string_view old, std::string_view with);
std::vector<std::string_view> split(std::string_view text, std::string_view separator);
std::size_t count_code_points(std::string_view text);
// \w of Python's re: a letter, a number or "_".
bool is_word_character(char32_t c);

}  // namespace moh::eval
