#include "moh/kernels/quantized_linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "moh/kernels/each_item.h"

namespace moh::kernels {
namespace {

using std::int64_t;
using std::uint8_t;

void put_half(uint8_t* to, float value) {
  const auto half = static_cast<_Float16>(value);
  std::memcpy(to, &half, 2);
}
float half_at(const uint8_t* from) {
  _Float16 half;
  std::memcpy(&half, from, 2);
  return static_cast<float>(half);
}

// To nearest even, for small numbers; std::nearbyint would be a call.
float rounded(float value) { return (value + 12582912.0F) - 12582912.0F; }

// Numbers of `levels` steps on either side: scale * q, -levels <= q <= levels (with `one_more`: -levels - 1 too). Of
// few steps, tries scales around the one that makes the largest number the last step and keeps that of the least
// squared error.
float best_scale(const float* numbers, int levels, bool one_more) {
  float largest = 0;
  for (int64_t i = 0; i < kBlockInputs; ++i) {
    if (std::fabs(numbers[i]) > std::fabs(largest)) largest = numbers[i];
  }
  if (largest == 0) return 0;
  float best = 0, least = INFINITY;
  const auto attempt = [&](float scale) {
    scale = static_cast<float>(static_cast<_Float16>(scale));
    if (scale == 0) return;
    float error = 0;
    for (int64_t i = 0; i < kBlockInputs; ++i) {
      const auto step = static_cast<float>(levels);
      const float q = std::clamp(rounded(numbers[i] / scale), -step - (one_more ? 1.0F : 0.0F), step);
      error += (numbers[i] - scale * q) * (numbers[i] - scale * q);
    }
    if (error < least) {
      least = error;
      best = scale;
    }
  };
  // With one step more on one side, the sign of the scale says on which.
  const int tries = levels > 100 ? 0 : 8;
  for (int i = -tries; i <= tries; ++i) {
    const float steps = static_cast<float>(levels) + 0.1F * static_cast<float>(i);
    attempt(largest / (one_more ? -(steps + 1) : steps));
    if (one_more) attempt(largest / steps);
  }
  return best;
}

void quantize_block(const float* numbers, WeightBlocks kind, uint8_t* block) {
  const bool wide = kind == WeightBlocks::kQ8_0;
  const float scale = best_scale(numbers, wide ? 127 : 7, !wide);
  put_half(block, scale);
  const auto q_of = [&](int64_t i) {
    const float q = scale == 0 ? 0 : rounded(numbers[i] / scale);
    return static_cast<int>(std::clamp(q, wide ? -127.0F : -8.0F, wide ? 127.0F : 7.0F));
  };
  for (int64_t i = 0; i < (wide ? kBlockInputs : kBlockInputs / 2); ++i) {
    block[2 + i] = wide ? static_cast<uint8_t>(q_of(i))
                        : static_cast<uint8_t>((q_of(i) + 8) | (q_of(i + kBlockInputs / 2) + 8) << 4);
  }
}

int64_t header_of(WeightBlocks kind) { return kind == WeightBlocks::kQ4_1 ? 4 : 2; }

// Number i without its sign, as the packed weight has it.
uint8_t raw_number(const uint8_t* block, WeightBlocks kind, int64_t i) {
  const uint8_t* const numbers = block + header_of(kind);
  if (kind == WeightBlocks::kQ8_0) return numbers[i] ^ 0x80U;
  return i < kBlockInputs / 2 ? numbers[i] & 15U : numbers[i - kBlockInputs / 2] >> 4;
}

}  // namespace

void quantize_blocks(const float* weight, int64_t outputs, int64_t inputs, WeightBlocks kind, void* blocks,
                     const Parallel& parallel) {
  const int64_t count = blocks_of(inputs), bytes = block_bytes(kind);
  split_items(parallel, outputs, [&](int64_t o) {
    for (int64_t b = 0; b < count; ++b) {
      float numbers[kBlockInputs] = {};
      const int64_t size = std::min(kBlockInputs, inputs - b * kBlockInputs);
      std::copy_n(weight + o * inputs + b * kBlockInputs, size, numbers);
      quantize_block(numbers, kind, static_cast<uint8_t*>(blocks) + (o * count + b) * bytes);
    }
  });
}

void pack_blocks(const void* blocks, int64_t outputs, int64_t inputs, WeightBlocks kind, void* packed,
                 const Parallel& parallel) {
  const int64_t count = blocks_of(inputs), bytes = block_bytes(kind), header = header_of(kind);
  split_items(parallel, (outputs + kStripOutputs - 1) / kStripOutputs, [&](int64_t strip) {
    for (int64_t b = 0; b < count; ++b) {
      uint8_t* const to = static_cast<uint8_t*>(packed) + (strip * count + b) * kStripOutputs * bytes;
      uint8_t* const numbers = to + kStripOutputs * header;
      std::memset(to, 0, static_cast<std::size_t>(kStripOutputs * bytes));
      for (int64_t lane = 0; lane < std::min(kStripOutputs, outputs - strip * kStripOutputs); ++lane) {
        const auto* const from =
            static_cast<const uint8_t*>(blocks) + ((strip * kStripOutputs + lane) * count + b) * bytes;
        for (int64_t half = 0; half < header / 2; ++half) {
          std::memcpy(to + (half * kStripOutputs + lane) * 2, from + half * 2, 2);
        }
        for (int64_t i = 0; i < kBlockInputs; ++i) {
          const uint8_t number = raw_number(from, kind, i);
          const int64_t group = i / 4;
          if (kind == WeightBlocks::kQ8_0) {
            numbers[(group * kStripOutputs + lane) * 4 + i % 4] = number;
          } else {
            numbers[(group % 4 * kStripOutputs + lane) * 4 + i % 4] |=
                static_cast<uint8_t>(group < 4 ? number : number << 4);
          }
        }
      }
    }
  });
}

void unpack_numbers(const void* packed, int64_t outputs, int64_t inputs, WeightBlocks kind, float* weight) {
  const int64_t count = blocks_of(inputs), bytes = block_bytes(kind), header = header_of(kind);
  const int offset = kind == WeightBlocks::kQ8_0 ? 128 : kind == WeightBlocks::kQ4_0 ? 8 : 0;
  for (int64_t o = 0; o < outputs; ++o) {
    const int64_t lane = o % kStripOutputs;
    for (int64_t i = 0; i < inputs; ++i) {
      const auto* const block =
          static_cast<const uint8_t*>(packed) + (o / kStripOutputs * count + i / kBlockInputs) * kStripOutputs * bytes;
      const int64_t at = i % kBlockInputs, group = at / 4;
      const bool wide = kind == WeightBlocks::kQ8_0;
      int q = block[kStripOutputs * header + ((wide ? group : group % 4) * kStripOutputs + lane) * 4 + at % 4];
      if (!wide) q = group < 4 ? q & 15 : q >> 4;
      const float minimum = kind == WeightBlocks::kQ4_1 ? half_at(block + 2 * (kStripOutputs + lane)) : 0;
      weight[o * inputs + i] = half_at(block + 2 * lane) * static_cast<float>(q - offset) + minimum;
    }
  }
}

}  // namespace moh::kernels
