// A linear map by weights of 8 or 4 bits: the weights alone are stored so, and a row of x is rounded to 8 bits when it
// is multiplied, each 32 numbers with a scale of their own.
//
//   y[r, o] = sum over blocks b of 32 inputs:  x_scale[r, b] (scale[o, b] sum_i qx[r, i] q[o, i]
//                                                             + minimum[o, b] sum_i qx[r, i])  + bias[o]
//
// The sums of a block are integers, exact; blocks are added in order in fp32: a row's result does not depend on how
// many rows the call has, nor on the threads, to the bit.
//
// Weights come in the blocks of GGUF, kept bit for bit (scales and minima are fp16):
//   Q8_0: scale, 32 x int8                      q = the number
//   Q4_0: scale, 32 x 4 bits                    q = the bits - 8
//   Q4_1: scale, minimum, 32 x 4 bits           q = the bits
// Byte j of 4-bit blocks holds number j in its low half and number j + 16 in its high half.
#pragma once

#include <cstdint>

#include "moh/kernels/dtype.h"
#include "moh/kernels/packed_linear.h"

namespace moh::kernels {

enum class WeightBlocks : std::uint8_t { kQ8_0, kQ4_0, kQ4_1 };

constexpr std::int64_t kBlockInputs = 32;
constexpr std::int64_t kStripOutputs = 16;  // whose blocks lie side by side when packed

constexpr std::int64_t block_bytes(WeightBlocks blocks) {
  return blocks == WeightBlocks::kQ8_0 ? 34 : blocks == WeightBlocks::kQ4_0 ? 18 : 20;
}
constexpr std::int64_t blocks_of(std::int64_t inputs) { return (inputs + kBlockInputs - 1) / kBlockInputs; }

struct QuantizedLinearParams {
  std::int64_t rows = 0, inputs = 0, outputs = 0;
  DType dtype = DType::kFloat32;  // of x and y
  WeightBlocks blocks = WeightBlocks::kQ8_0;
  Strided<const void*, 2> x = {};  // [R, inputs]
  const void* weight = nullptr;    // packed
  const float* bias = nullptr;     // [outputs]; nullptr: none
  Strided<void*, 2> y = {};        // [R, outputs], every element written
  HeadSides heads = {};
  Parallel parallel = {};
};

// Rounds [outputs, inputs] numbers to blocks, the last one of a row filled with zeros: scales are those of the least
// squared error among some near the usual one. Not Q4_1.
void quantize_blocks(const float* weight, std::int64_t outputs, std::int64_t inputs, WeightBlocks kind, void* blocks,
                     const Parallel& parallel);
// Bytes of the packed weight: strips of kStripOutputs outputs, zeros beyond the last one.
constexpr std::int64_t packed_blocks_size(std::int64_t outputs, std::int64_t inputs, WeightBlocks kind) {
  return (outputs + kStripOutputs - 1) / kStripOutputs * kStripOutputs * blocks_of(inputs) * block_bytes(kind);
}
// A packed block of a strip: kStripOutputs scales (and minima), then the numbers without their sign (q + 128, or the 4
// bits), four inputs of an output in a word, [group of four][output]; of 4 bits groups g and g + 4 share their bytes.
void pack_blocks(const void* blocks, std::int64_t outputs, std::int64_t inputs, WeightBlocks kind, void* packed,
                 const Parallel& parallel);
// The numbers [outputs, inputs] that a packed weight stands for.
void unpack_numbers(const void* packed, std::int64_t outputs, std::int64_t inputs, WeightBlocks kind, float* weight);

}  // namespace moh::kernels
