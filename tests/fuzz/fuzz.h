// What the fuzz targets share. A target feeds bytes to a reader of files from elsewhere: the reader may answer with
// moh::Error, and with nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "moh/base/error.h"

namespace moh::fuzz {

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}
inline std::span<const std::byte> bytes_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const std::byte*>(data), size};
}

// Error messages are one line, whatever the file holds.
template <class Read>
void expect_result_or_error(const Read& read) {
  try {
    read();
  } catch (const Error& error) {
    if (std::string_view(error.what()).find('\n') != std::string_view::npos) __builtin_trap();
  }
}

inline void require(bool condition) {
  if (!condition) __builtin_trap();
}

}  // namespace moh::fuzz
