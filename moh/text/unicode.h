// Properties and normal forms of characters.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moh::text {

bool is_white_space(std::uint32_t code_point);
bool is_word(std::uint32_t code_point);  // a letter, mark, digit or connector

enum class NormalForm { nfc, nfd, nfkc, nfkd };
// Of well-formed UTF-8.
std::string normalize(std::string_view text, NormalForm form);

}  // namespace moh::text
