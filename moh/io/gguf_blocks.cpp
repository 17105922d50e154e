#include "moh/io/gguf_blocks.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>

namespace moh::io {
namespace {

using Byte = unsigned char;

std::uint32_t read_u16(const Byte* at) { return at[0] | static_cast<std::uint32_t>(at[1]) << 8; }
std::uint32_t read_u32(const Byte* at) { return read_u16(at) | read_u16(at + 2) << 16; }

float read_half(const Byte* at) {
  const std::uint32_t bits = read_u16(at), sign = (bits & 0x8000U) << 16, exponent = bits >> 10 & 31,
                      rest = bits & 1023;
  if (exponent == 0) {  // subnormal
    const float value = std::ldexp(static_cast<float>(rest), -24);
    return sign != 0 ? -value : value;
  }
  const std::uint32_t widened = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | widened << 23 | rest << 13);
}

void decode_f32(const Byte* block, float* numbers) { *numbers = std::bit_cast<float>(read_u32(block)); }
void decode_f16(const Byte* block, float* numbers) { *numbers = read_half(block); }
void decode_bf16(const Byte* block, float* numbers) { *numbers = std::bit_cast<float>(read_u16(block) << 16); }

// ---- Blocks of 32: the low four bits of 16 bytes are numbers 0 to 15, the high ones 16 to 31.

void decode_q4_0(const Byte* block, float* numbers) {
  const float scale = read_half(block);
  for (int i = 0; i < 16; ++i) {
    numbers[i] = scale * static_cast<float>((block[2 + i] & 15) - 8);
    numbers[i + 16] = scale * static_cast<float>((block[2 + i] >> 4) - 8);
  }
}

void decode_q4_1(const Byte* block, float* numbers) {
  const float scale = read_half(block), least = read_half(block + 2);
  for (int i = 0; i < 16; ++i) {
    numbers[i] = scale * static_cast<float>(block[4 + i] & 15) + least;
    numbers[i + 16] = scale * static_cast<float>(block[4 + i] >> 4) + least;
  }
}

// Five bits: the fifth ones are a word beside the fours.
void decode_q5_0(const Byte* block, float* numbers) {
  const float scale = read_half(block);
  const std::uint32_t fifth = read_u32(block + 2);
  for (int i = 0; i < 16; ++i) {
    const auto low = static_cast<int>((block[6 + i] & 15) | (fifth >> i & 1) << 4);
    const auto high = static_cast<int>((block[6 + i] >> 4) | (fifth >> (i + 16) & 1) << 4);
    numbers[i] = scale * static_cast<float>(low - 16);
    numbers[i + 16] = scale * static_cast<float>(high - 16);
  }
}

void decode_q5_1(const Byte* block, float* numbers) {
  const float scale = read_half(block), least = read_half(block + 2);
  const std::uint32_t fifth = read_u32(block + 4);
  for (int i = 0; i < 16; ++i) {
    const auto low = static_cast<int>((block[8 + i] & 15) | (fifth >> i & 1) << 4);
    const auto high = static_cast<int>((block[8 + i] >> 4) | (fifth >> (i + 16) & 1) << 4);
    numbers[i] = scale * static_cast<float>(low) + least;
    numbers[i + 16] = scale * static_cast<float>(high) + least;
  }
}

void decode_q8_0(const Byte* block, float* numbers) {
  const float scale = read_half(block);
  for (int i = 0; i < 32; ++i) numbers[i] = scale * static_cast<float>(static_cast<signed char>(block[2 + i]));
}

constexpr std::array<int, 16> kUnevenSteps = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

void decode_iq4_nl(const Byte* block, float* numbers) {
  const float scale = read_half(block);
  for (int i = 0; i < 16; ++i) {
    numbers[i] = scale * static_cast<float>(kUnevenSteps[block[2 + i] & 15]);
    numbers[i + 16] = scale * static_cast<float>(kUnevenSteps[block[2 + i] >> 4]);
  }
}

// ---- Blocks of 256: groups of 16 or 32 have small scales of their own, which a half scales once more.

void decode_q2_k(const Byte* block, float* numbers) {
  const Byte *scales = block, *twos = block + 16;
  const float scale = read_half(block + 80), least = read_half(block + 82);
  for (int i = 0; i < 256; ++i) {
    const Byte group = scales[i / 16];
    const int number = twos[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    numbers[i] =
        scale * static_cast<float>(group & 15) * static_cast<float>(number) - least * static_cast<float>(group >> 4);
  }
}

void decode_q3_k(const Byte* block, float* numbers) {
  const Byte *thirds = block, *twos = block + 32, *scales = block + 96;
  const float scale = read_half(block + 108);
  for (int i = 0; i < 256; ++i) {
    const int group = i / 16;
    const int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
    const int high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
    const int third = thirds[i % 32] >> (i / 32) & 1;
    const int number = (twos[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) - (third != 0 ? 0 : 4);
    numbers[i] = scale * static_cast<float>((low | high << 4) - 32) * static_cast<float>(number);
  }
}

// Eight scales and eight minima of six bits in twelve bytes: four and four whole, the others' low bits in the last four
// bytes and their high bits on top of the first eight.
struct SixBits {
  int scale, least;
};
SixBits six_bits(const Byte* packed, int group) {
  if (group < 4) return {packed[group] & 63, packed[group + 4] & 63};
  return {(packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4, packed[group + 4] >> 4 | (packed[group] >> 6) << 4};
}

void decode_q4_k(const Byte* block, float* numbers) {
  const float scale = read_half(block), least = read_half(block + 2);
  for (int group = 0; group < 8; ++group) {
    const SixBits own = six_bits(block + 4, group);
    const float step = scale * static_cast<float>(own.scale), offset = least * static_cast<float>(own.least);
    const Byte* fours = block + 16 + group / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      numbers[group * 32 + i] = step * static_cast<float>(fours[i] >> (group % 2 * 4) & 15) - offset;
    }
  }
}

void decode_q5_k(const Byte* block, float* numbers) {
  const float scale = read_half(block), least = read_half(block + 2);
  const Byte* fifths = block + 16;
  for (int group = 0; group < 8; ++group) {
    const SixBits own = six_bits(block + 4, group);
    const float step = scale * static_cast<float>(own.scale), offset = least * static_cast<float>(own.least);
    const Byte* fours = block + 48 + group / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      const int number = (fours[i] >> (group % 2 * 4) & 15) | (fifths[i] >> group & 1) << 4;
      numbers[group * 32 + i] = step * static_cast<float>(number) - offset;
    }
  }
}

void decode_q6_k(const Byte* block, float* numbers) {
  const Byte *fours = block, *twos = block + 128, *scales = block + 192;
  const float scale = read_half(block + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, quarter = i % 128 / 32, place = i % 32;
    const int low = fours[half * 64 + quarter % 2 * 32 + place] >> (quarter / 2 * 4) & 15;
    const int high = twos[half * 32 + place] >> (quarter * 2) & 3;
    numbers[i] = scale * static_cast<float>(static_cast<signed char>(scales[i / 16])) *
                 static_cast<float>((low | high << 4) - 32);
  }
}

void decode_iq4_xs(const Byte* block, float* numbers) {
  const float scale = read_half(block);
  const std::uint32_t tops = read_u16(block + 2);
  for (int group = 0; group < 8; ++group) {
    const auto low = static_cast<std::uint32_t>(block[4 + group / 2] >> (group % 2 * 4) & 15);
    const float step = scale * static_cast<float>(static_cast<int>(low | (tops >> (2 * group) & 3) << 4) - 32);
    const Byte* fours = block + 8 + group * 16;
    for (int i = 0; i < 16; ++i) {
      numbers[group * 32 + i] = step * static_cast<float>(kUnevenSteps[fours[i] & 15]);
      numbers[group * 32 + i + 16] = step * static_cast<float>(kUnevenSteps[fours[i] >> 4]);
    }
  }
}

constexpr BlockType kTypes[] = {{0, "F32", 1, 4, decode_f32},
                                {1, "F16", 1, 2, decode_f16},
                                {2, "Q4_0", 32, 18, decode_q4_0},
                                {3, "Q4_1", 32, 20, decode_q4_1},
                                {6, "Q5_0", 32, 22, decode_q5_0},
                                {7, "Q5_1", 32, 24, decode_q5_1},
                                {8, "Q8_0", 32, 34, decode_q8_0},
                                {9, "Q8_1", 32, 40, nullptr},
                                {10, "Q2_K", 256, 84, decode_q2_k},
                                {11, "Q3_K", 256, 110, decode_q3_k},
                                {12, "Q4_K", 256, 144, decode_q4_k},
                                {13, "Q5_K", 256, 176, decode_q5_k},
                                {14, "Q6_K", 256, 210, decode_q6_k},
                                {15, "Q8_K", 256, 292, nullptr},
                                {16, "IQ2_XXS", 256, 66, nullptr},
                                {17, "IQ2_XS", 256, 74, nullptr},
                                {18, "IQ3_XXS", 256, 98, nullptr},
                                {19, "IQ1_S", 256, 50, nullptr},
                                {20, "IQ4_NL", 32, 18, decode_iq4_nl},
                                {21, "IQ3_S", 256, 110, nullptr},
                                {22, "IQ2_S", 256, 82, nullptr},
                                {23, "IQ4_XS", 256, 136, decode_iq4_xs},
                                {24, "I8", 1, 1, nullptr},
                                {25, "I16", 1, 2, nullptr},
                                {26, "I32", 1, 4, nullptr},
                                {27, "I64", 1, 8, nullptr},
                                {28, "F64", 1, 8, nullptr},
                                {29, "IQ1_M", 256, 56, nullptr},
                                {30, "BF16", 1, 2, decode_bf16},
                                {34, "TQ1_0", 256, 54, nullptr},
                                {35, "TQ2_0", 256, 66, nullptr},
                                {39, "MXFP4", 32, 17, nullptr},
                                {40, "NVFP4", 64, 36, nullptr},
                                {41, "Q1_0", 128, 18, nullptr}};

}  // namespace

const BlockType* find_block_type(std::uint32_t id) {
  for (const BlockType& type : kTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

void dequantize(const BlockType& type, std::span<const std::byte> blocks, float* numbers) {
  const auto* block = reinterpret_cast<const Byte*>(blocks.data());
  for (std::size_t left = blocks.size() / type.bytes; left > 0; --left) {
    type.decode(block, numbers);
    block += type.bytes;
    numbers += type.values;
  }
}

}  // namespace moh::io
