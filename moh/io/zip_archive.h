// The table of contents of a zip archive, as torch.save (entries stored) and NumPy (stored or deflated) write it. Torch-free.
// Sizes and places are checked against the file; a damaged archive is one Error "[zip] FILE: what is wrong".
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace moh::io {

struct ZipEntry {
  std::string name;
  std::span<const std::byte> bytes;  // into the memory given
  bool packed = false;               // compressed or encrypted: the bytes are not the content
  bool deflated = false;             // packed in the one way that unpack() undoes
  std::uint64_t size = 0;            // of the content
  std::uint32_t checksum = 0;        // CRC-32 of it
};

// True when the memory begins as a zip archive does.
bool is_zip(std::span<const std::byte> file);

// In the order of the table. zip64 is understood. Errors: cut short, entries outside the file.
std::vector<ZipEntry> read_zip(std::span<const std::byte> file, const std::string& label);

// The content of an entry that is deflated. Errors: packed in another way, damaged, larger or smaller than it says.
std::vector<std::byte> unpack(const ZipEntry& entry, const std::string& label);

}  // namespace moh::io
