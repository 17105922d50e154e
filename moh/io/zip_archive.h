// The table of contents of a zip archive whose entries are stored, not compressed: what torch.save writes. Torch-free.
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
};

// True when the memory begins as a zip archive does.
bool is_zip(std::span<const std::byte> file);

// In the order of the table. zip64 is understood. Errors: cut short, entries outside the file.
std::vector<ZipEntry> read_zip(std::span<const std::byte> file, const std::string& label);

}  // namespace moh::io
