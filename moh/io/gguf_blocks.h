// Weights as GGUF files hold them: blocks of 1, 32 or 256 numbers of few bits with a scale (and, by type, a minimum),
// and their numbers as fp32. Torch-free.
#pragma once

#include <cstdint>
#include <span>

namespace moh::io {

struct BlockType {
  std::uint32_t id;  // in the file
  const char* name;
  int values, bytes;                                           // of a block
  void (*decode)(const unsigned char* block, float* numbers);  // one block; nullptr: the type is not read
};

// nullptr: unknown.
const BlockType* find_block_type(std::uint32_t id);

// `blocks` holds whole blocks; `numbers` has room for all of them.
void dequantize(const BlockType& type, std::span<const std::byte> blocks, float* numbers);

}  // namespace moh::io
