// Text as data: UTF-8, and nothing that only looks like a text file by its name. Torch-free.
#pragma once

#include <string>
#include <string_view>

namespace moh::data {

// What a content that is no UTF-8 text is, and what to do about it: UTF-16 and UTF-32, compressed files, other
// binaries.
// "": text. Single broken characters do not make a file binary: they are read as U+FFFD, as everywhere.
std::string not_text_reason(std::string_view content);

// The whole file. Error: not a text.
std::string read_text_file(const std::string& path);

}  // namespace moh::data
