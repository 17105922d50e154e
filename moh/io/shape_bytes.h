// The bytes of an array by its shape, for headers of files that nobody vouches for.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace moh::io {

// Nothing: a negative size or more bytes than an int64 can count. Sizes of 0 do not excuse an overflow of the others,
// whose product still goes into strides.
inline std::optional<std::uint64_t> shape_bytes(const std::vector<std::int64_t>& shape, int element_bytes) {
  std::int64_t bytes = element_bytes;
  bool empty = false;
  for (const std::int64_t size : shape) {
    if (size < 0) return std::nullopt;
    if (size == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(bytes, size, &bytes)) {
      return std::nullopt;
    }
  }
  return empty ? 0 : static_cast<std::uint64_t>(bytes);
}

}  // namespace moh::io
