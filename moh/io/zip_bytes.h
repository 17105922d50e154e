// Little pieces that writers of zip archives share. Torch-free.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

namespace moh::io {

constexpr std::uint16_t kZipDate = 0x0021;  // 1 January 1980: the same content gives the same file

// Continues a CRC-32; it begins as 0xffffffff, and its complement at the end is what a zip archive holds.
inline std::uint32_t zip_crc(std::uint32_t crc, std::span<const unsigned char> bytes) {
  static const auto table = [] {
    std::array<std::uint32_t, 256> values{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0xedb88320U : 0);
      values[i] = value;
    }
    return values;
  }();
  for (const unsigned char byte : bytes) crc = table[(crc ^ byte) & 0xff] ^ (crc >> 8);
  return crc;
}

// Appends an integer, least byte first.
template <class T>
void put_little(std::string& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    out += static_cast<char>((static_cast<std::uint64_t>(value) >> (8 * i)) & 0xff);
  }
}

}  // namespace moh::io
