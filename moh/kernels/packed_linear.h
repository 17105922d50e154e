// A linear map by weights that were packed once: what serves a model over and over.
//
//   y[r, o] = sum_i x[r, i] weight[o, i] + bias[o]
//
// Every number is one chain of fused multiply-adds over i in order, in fp32: a row's result does not depend on how many
// rows the call has, nor on the threads, to the bit. A few rows read the weights at the speed of memory, so 2-byte
// weights take half the time of fp32 ones.
//
// Packed: panels of kPackedColumns outputs, [panel][input][column] in the weights' own type, zeros beyond the last
// output.
#pragma once

#include <cstdint>

#include "moh/kernels/dtype.h"
#include "moh/kernels/parallel.h"
#include "moh/kernels/selection.h"
#include "moh/kernels/strided.h"

namespace moh::kernels {

constexpr std::int64_t kPackedColumns = 64;

// Which side of the map has heads that rows may not use. Outputs: those of a head that a row does not use are zero.
// Inputs: x is zero there. Either way tiles of rows skip the weights of heads that none of their rows uses.
struct HeadSides {
  enum class Side : std::uint8_t { kNone, kOutputs, kInputs } side = Side::kNone;
  const float* gates = nullptr;      // [R, H]; zero: the row does not use the head
  std::int64_t count = 0, size = 0;  // H, and the outputs or inputs of each

  // Whether one of `rows` rows from `first` on uses a head of those that have a part of [begin, end).
  MOH_ALWAYS_INLINE bool used(std::int64_t first, std::int64_t rows, std::int64_t begin, std::int64_t end) const {
    for (std::int64_t h = begin / size; h * size < end && h < count; ++h) {
      for (std::int64_t r = first; r < first + rows; ++r) {
        if (gates[r * count + h] != 0) return true;
      }
    }
    return false;
  }
};

struct PackedLinearParams {
  std::int64_t rows = 0, inputs = 0, outputs = 0;
  DType dtype = DType::kFloat32;         // of x and y
  DType weight_dtype = DType::kFloat32;  // fp32, bf16 or fp16
  Strided<const void*, 2> x = {};        // [R, inputs]
  const void* weight = nullptr;          // packed
  const float* bias = nullptr;           // [outputs]; nullptr: none
  Strided<void*, 2> y = {};              // [R, outputs], every element written
  HeadSides heads = {};
  Parallel parallel = {};
};

// Elements of the packed weight.
constexpr std::int64_t packed_size(std::int64_t outputs, std::int64_t inputs) {
  return (outputs + kPackedColumns - 1) / kPackedColumns * kPackedColumns * inputs;
}
// weight [outputs, inputs] of any strides, elements of `bytes` bytes.
void pack_weight(const void* weight, std::int64_t bytes, std::int64_t outputs, std::int64_t inputs,
                 std::int64_t output_stride, std::int64_t input_stride, void* packed, const Parallel& parallel);

}  // namespace moh::kernels
