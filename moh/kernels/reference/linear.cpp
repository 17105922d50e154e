#include "moh/kernels/reference/linear.h"

#include <algorithm>
#include <cmath>

#include "moh/kernels/reference/element.h"

namespace moh::kernels::reference {
namespace {

template <class Params>
double x_at(const Params& p, std::int64_t r, std::int64_t i) {
  const std::int64_t place = r * p.x.stride[0] + i * p.x.stride[1];
  return to_double(static_cast<const char*>(p.x.data) + place * size_of(p.dtype), p.dtype);
}

// Zero where the row does not use the output's head.
template <class Params>
void put(const Params& p, std::int64_t r, std::int64_t o, double value) {
  const HeadSides& heads = p.heads;
  if (heads.side == HeadSides::Side::kOutputs && heads.gates[r * heads.count + o / heads.size] == 0) value = 0;
  const std::int64_t place = r * p.y.stride[0] + o * p.y.stride[1];
  from_double(static_cast<char*>(p.y.data) + place * size_of(p.dtype), p.dtype, value);
}

}  // namespace

void packed_linear(const PackedLinearParams& p) {
  for (std::int64_t r = 0; r < p.rows; ++r) {
    for (std::int64_t o = 0; o < p.outputs; ++o) {
      const std::int64_t panel = o / kPackedColumns * kPackedColumns * p.inputs;
      double sum = p.bias == nullptr ? 0 : p.bias[o];
      for (std::int64_t i = 0; i < p.inputs; ++i) {
        const std::int64_t at = (panel + i * kPackedColumns + o % kPackedColumns) * size_of(p.weight_dtype);
        sum += x_at(p, r, i) * to_double(static_cast<const char*>(p.weight) + at, p.weight_dtype);
      }
      put(p, r, o, sum);
    }
  }
}

// Straight from the packed weight and the definition (moh/kernels/quantized_linear.h): x rounded to 8 bits as there.
void quantized_linear(const QuantizedLinearParams& p) {
  const std::int64_t blocks = blocks_of(p.inputs), bytes = block_bytes(p.blocks);
  const bool wide = p.blocks == WeightBlocks::kQ8_0, has_minimum = p.blocks == WeightBlocks::kQ4_1;
  const int offset = wide ? 128 : has_minimum ? 0 : 8;
  for (std::int64_t r = 0; r < p.rows; ++r) {
    for (std::int64_t o = 0; o < p.outputs; ++o) {
      const std::int64_t lane = o % kStripOutputs;
      double sum = p.bias == nullptr ? 0 : p.bias[o];
      for (std::int64_t b = 0; b < blocks; ++b) {
        const char* const block =
            static_cast<const char*>(p.weight) + (o / kStripOutputs * blocks + b) * kStripOutputs * bytes;
        const auto* const numbers =
            reinterpret_cast<const std::uint8_t*>(block) + kStripOutputs * (has_minimum ? 4 : 2);
        const double scale = to_double(block + 2 * lane, DType::kFloat16);
        const double minimum = has_minimum ? to_double(block + 2 * (kStripOutputs + lane), DType::kFloat16) : 0;
        const std::int64_t size = std::min(kBlockInputs, p.inputs - b * kBlockInputs);
        double largest = 0;
        for (std::int64_t i = 0; i < size; ++i) {
          largest = std::max(largest, std::fabs(x_at(p, r, b * kBlockInputs + i)));
        }
        const float factor = largest > 0 ? 127.0F / static_cast<float>(largest) : 0.0F;
        double dot = 0, total = 0;
        for (std::int64_t i = 0; i < size; ++i) {
          const double x = std::nearbyint(static_cast<float>(x_at(p, r, b * kBlockInputs + i)) * factor);
          const std::int64_t group = i / 4;
          int q = numbers[((wide ? group : group % 4) * kStripOutputs + lane) * 4 + i % 4];
          if (!wide) q = group < 4 ? q & 15 : q >> 4;
          dot += x * (q - offset);
          total += x;
        }
        sum += static_cast<double>(static_cast<float>(largest) / 127.0F) * (scale * dot + minimum * total);
      }
      put(p, r, o, sum);
    }
  }
}

}  // namespace moh::kernels::reference
