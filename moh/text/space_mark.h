// U+2581, which stands for a space in SentencePiece's alphabet and in vocabularies that come from it.
#pragma once

#include <string>
#include <string_view>

namespace moh::text {

inline constexpr std::string_view kSpaceMark = "\xe2\x96\x81";
std::string spaces_for_marks(std::string_view token);

}  // namespace moh::text
