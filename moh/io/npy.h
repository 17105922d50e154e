// NumPy .npy files of unsigned and signed integers (token ids) and floats. Little-endian, C order, versions 1-3.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace moh::io {

struct NpyHeader {
  std::string dtype;  // NumPy's name without byte order: u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8 b1
  std::vector<std::int64_t> shape;
  std::size_t data_offset = 0;
};

// Checks magic, version, the header dictionary (parsed, never evaluated), and that the data is exactly as long as the
// shape says. Error "[npy] FILE: ...".
NpyHeader read_npy_header(std::span<const std::byte> file, const std::string& label);

// What stands before the data: magic, version and header dictionary.
std::string npy_head(const std::string& dtype, const std::vector<std::int64_t>& shape);

void write_npy(const std::string& path, const std::string& dtype, const std::vector<std::int64_t>& shape,
               std::span<const std::byte> data);

}  // namespace moh::io
