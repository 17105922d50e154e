// Linear maps by weights of 8 and 4 bits: every backend against a float64 sum over the blocks, decoded here anew; the
// same bits for a row whatever else is in the call; heads that are skipped; and what rounding costs.
#include "moh/kernels/quantized_linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "moh/kernels/reference/element.h"
#include "tests/kernels/backend_test_case.h"

namespace {

using namespace moh::kernels;
using moh::kernels::reference::from_double;
using moh::kernels::reference::to_double;
using Side = HeadSides::Side;

constexpr WeightBlocks kKinds[] = {WeightBlocks::kQ8_0, WeightBlocks::kQ4_0, WeightBlocks::kQ4_1};

// GGUF's blocks as their format says, number by number.
double decoded(const std::vector<unsigned char>& blocks, WeightBlocks kind, std::int64_t inputs, std::int64_t o,
               std::int64_t i) {
  const unsigned char* const block = &blocks[(o * ((inputs + 31) / 32) + i / 32) * block_bytes(kind)];
  const double scale = to_double(reinterpret_cast<const char*>(block), DType::kFloat16);
  const std::int64_t at = i % 32;
  if (kind == WeightBlocks::kQ8_0) return scale * static_cast<signed char>(block[2 + at]);
  if (kind == WeightBlocks::kQ4_0) {
    return scale * ((at < 16 ? block[2 + at] & 15 : block[2 + at - 16] >> 4) - 8);
  }
  return scale * (at < 16 ? block[4 + at] & 15 : block[4 + at - 16] >> 4) +
         to_double(reinterpret_cast<const char*>(block + 2), DType::kFloat16);
}

struct Case {
  QuantizedLinearParams p;
  std::vector<char> x, y;
  std::vector<unsigned char> blocks, packed;
  std::vector<float> bias, gates;

  Case(std::int64_t rows, std::int64_t outputs, std::int64_t inputs, WeightBlocks kind, DType dtype, bool with_bias,
       std::int64_t gap) {
    std::mt19937 random(static_cast<unsigned>(rows + outputs * 7 + inputs * 31));
    std::normal_distribution<double> normal;
    x.resize(static_cast<std::size_t>(rows * (inputs + gap) * size_of(dtype)));
    for (std::int64_t i = 0; i < rows * (inputs + gap); ++i) {
      from_double(&x[i * size_of(dtype)], dtype, normal(random));
    }
    const std::int64_t count = outputs * blocks_of(inputs);
    blocks.resize(static_cast<std::size_t>(count * block_bytes(kind)));
    for (auto& byte : blocks) byte = static_cast<unsigned char>(random());
    for (std::int64_t b = 0; b < count; ++b) {
      auto* const block = reinterpret_cast<char*>(&blocks[b * block_bytes(kind)]);
      from_double(block, DType::kFloat16, 0.01 * (1 + std::fabs(normal(random))));
      if (kind == WeightBlocks::kQ4_1) from_double(block + 2, DType::kFloat16, 0.05 * normal(random));
    }
    packed.resize(static_cast<std::size_t>(packed_blocks_size(outputs, inputs, kind)));
    pack_blocks(blocks.data(), outputs, inputs, kind, packed.data(), threads(3));
    y.assign(static_cast<std::size_t>(rows * outputs * size_of(dtype)), 0x5a);
    for (std::int64_t o = 0; o < outputs && with_bias; ++o) bias.push_back(static_cast<float>(normal(random)));
    p = {.rows = rows, .inputs = inputs, .outputs = outputs, .dtype = dtype, .blocks = kind};
    p.x = {x.data(), {inputs + gap, 1}};
    p.weight = packed.data();
    p.bias = with_bias ? bias.data() : nullptr;
    p.y = {y.data(), {outputs, 1}};
  }
  // Every third head of a row is not used; where x has heads, it is zero there.
  void use_heads(Side side, std::int64_t heads) {
    const std::int64_t size = (side == Side::kOutputs ? p.outputs : p.inputs) / heads;
    gates.resize(static_cast<std::size_t>(p.rows * heads));
    for (std::int64_t r = 0; r < p.rows; ++r) {
      for (std::int64_t h = 0; h < heads; ++h) {
        const bool used = (r / 5 + h) % 3 != 0;
        gates[r * heads + h] = used ? 0.5F : 0.0F;
        for (std::int64_t i = 0; i < size && !used && side == Side::kInputs; ++i) {
          from_double(&x[(r * p.x.stride[0] + h * size + i) * size_of(p.dtype)], p.dtype, 0);
        }
      }
    }
    p.heads = {side, gates.data(), heads, size};
  }
  double x_at(std::int64_t r, std::int64_t i) const {
    return to_double(&x[(r * p.x.stride[0] + i) * size_of(p.dtype)], p.dtype);
  }
  double y_at(std::int64_t r, std::int64_t o) const {
    return to_double(&y[(r * p.outputs + o) * size_of(p.dtype)], p.dtype);
  }
  // With x rounded to 8 bits in blocks of 32, by the exact product with the factor or by that in fp32 (they differ
  // where it lies halfway), or as it is.
  enum class Rounding { kNone, kExact, kTwice };
  double expected(std::int64_t r, std::int64_t o, Rounding rounding) const {
    double sum = bias.empty() ? 0 : bias[o];
    for (std::int64_t b = 0; b < p.inputs; b += 32) {
      float largest = 0;
      const std::int64_t end = std::min(b + 32, p.inputs);
      for (std::int64_t i = b; i < end; ++i) largest = std::max(largest, static_cast<float>(std::fabs(x_at(r, i))));
      for (std::int64_t i = b; i < end; ++i) {
        const float value = static_cast<float>(x_at(r, i));
        const float factor = largest > 0 ? 127.0F / largest : 0, product = value * factor;
        const double exact = static_cast<double>(value) * factor;
        const double used = rounding == Rounding::kNone
                                ? value
                                : std::nearbyint(rounding == Rounding::kExact ? exact : product) * (largest / 127.0F);
        sum += used * decoded(blocks, p.blocks, p.inputs, o, i);
      }
    }
    return sum;
  }
};

class QuantizedLinearOnBackend : public BackendTest {};

TEST_P(QuantizedLinearOnBackend, EqualsTheSum) {
  const struct {
    DType dtype;
    double tolerance;
  } types[] = {{DType::kFloat32, 1e-5}, {DType::kBFloat16, 8e-3}, {DType::kFloat16, 1e-3}};
  const struct {
    std::int64_t rows, outputs, inputs;
  } shapes[] = {{1, 1, 1}, {1, 130, 96}, {2, 64, 33}, {5, 65, 7}, {7, 200, 128}, {107, 72, 40}, {0, 8, 32}};
  for (const WeightBlocks kind : kKinds) {
    for (const auto& type : types) {
      for (const auto& shape : shapes) {
        for (const bool bias : {false, true}) {
          Case c(shape.rows, shape.outputs, shape.inputs, kind, type.dtype, bias, bias ? 3 : 0);
          c.p.parallel = threads(2);
          backend_->quantized_linear(c.p);
          for (std::int64_t r = 0; r < shape.rows; ++r) {
            for (std::int64_t o = 0; o < shape.outputs; ++o) {
              const double wanted = c.expected(r, o, Case::Rounding::kExact);
              const double other = c.expected(r, o, Case::Rounding::kTwice);
              ASSERT_LE(std::min(std::fabs(c.y_at(r, o) - wanted), std::fabs(c.y_at(r, o) - other)),
                        type.tolerance * (std::fabs(wanted) + 1))
                  << name_of(type.dtype) << " kind " << static_cast<int>(kind) << " R=" << shape.rows << " row " << r
                  << " output " << o;
            }
          }
        }
      }
    }
  }
}

TEST_P(QuantizedLinearOnBackend, RoundingXTo8BitsCostsLessThanAPercent) {
  for (const WeightBlocks kind : kKinds) {
    Case c(16, 64, 512, kind, DType::kFloat32, false, 0);
    c.p.parallel = threads(1);
    backend_->quantized_linear(c.p);
    double error = 0, all = 0;
    for (std::int64_t r = 0; r < 16; ++r) {
      for (std::int64_t o = 0; o < 64; ++o) {
        const double wanted = c.expected(r, o, Case::Rounding::kNone);
        error += (c.y_at(r, o) - wanted) * (c.y_at(r, o) - wanted);
        all += wanted * wanted;
      }
    }
    EXPECT_LT(std::sqrt(error / all), 0.01);
  }
}

TEST_P(QuantizedLinearOnBackend, ARowDoesNotDependOnTheOthersToTheBit) {
  for (const WeightBlocks kind : kKinds) {
    for (const Side side : {Side::kNone, Side::kOutputs, Side::kInputs}) {
      const auto prepared = [&] {
        Case c(103, 144, 96, kind, DType::kBFloat16, true, 0);
        if (side != Side::kNone) c.use_heads(side, 6);
        return c;
      };
      Case all = prepared();
      all.p.parallel = threads(7);
      backend_->quantized_linear(all.p);
      for (const std::int64_t count : {1, 2, 3, 5, 8, 50}) {
        for (std::int64_t first = 0; first + count <= 103; first += 17) {
          Case some = prepared();
          some.p.rows = count;
          some.p.x.data = some.x.data() + first * 96 * 2;
          if (side != Side::kNone) some.p.heads.gates += first * 6;
          backend_->quantized_linear(some.p);
          EXPECT_EQ(std::memcmp(some.y.data(), all.y.data() + first * 288, static_cast<std::size_t>(count * 288)), 0)
              << count << " rows from " << first;
        }
      }
    }
  }
}

TEST_P(QuantizedLinearOnBackend, SkippedHeadsChangeNoBit) {
  for (const WeightBlocks kind : kKinds) {
    for (const std::int64_t heads :
         {2, 6, 12}) {  // of 48, 16 and 8 inputs: a block may have several, and parts of some
      Case skipped(29, 96, 96, kind, DType::kFloat32, true, 0), whole(29, 96, 96, kind, DType::kFloat32, true, 0);
      skipped.use_heads(Side::kInputs, heads);
      whole.use_heads(Side::kInputs, heads);
      whole.p.heads = {};
      backend_->quantized_linear(skipped.p);
      backend_->quantized_linear(whole.p);
      EXPECT_EQ(skipped.y, whole.y);

      Case outputs(29, 96, 96, kind, DType::kFloat32, true, 0), all(29, 96, 96, kind, DType::kFloat32, true, 0);
      outputs.use_heads(Side::kOutputs, heads);
      backend_->quantized_linear(outputs.p);
      backend_->quantized_linear(all.p);
      for (std::int64_t r = 0; r < 29; ++r) {
        for (std::int64_t o = 0; o < 96; ++o) {
          const bool used = outputs.gates[r * heads + o / (96 / heads)] != 0;
          ASSERT_EQ(outputs.y_at(r, o), used ? all.y_at(r, o) : 0) << "row " << r << " output " << o;
        }
      }
    }
  }
}

TEST_P(QuantizedLinearOnBackend, WhatIsNotFiniteShows) {
  for (const double bad : {static_cast<double>(INFINITY), std::nan("")}) {
    Case c(9, 40, 64, WeightBlocks::kQ8_0, DType::kFloat32, false, 0);
    from_double(&c.x[(4 * 64 + 40) * 4], DType::kFloat32, bad);
    backend_->quantized_linear(c.p);
    for (std::int64_t r = 0; r < 9; ++r) {
      for (std::int64_t o = 0; o < 40; ++o) EXPECT_EQ(std::isfinite(c.y_at(r, o)), r != 4) << r;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Quantized, QuantizedLinearOnBackend,
                         testing::ValuesIn(backends_with(&Backend::quantized_linear)),
                         [](const auto& info) { return info.param; });

TEST(Quantize, NumbersComeBackWithinHalfAStep) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const auto& [kind, steps] : {std::pair{WeightBlocks::kQ8_0, 127.0}, {WeightBlocks::kQ4_0, 7.0}}) {
    const std::int64_t outputs = 37, inputs = 80;
    std::vector<float> weight(outputs * inputs);
    for (float& value : weight) value = normal(random);
    std::vector<unsigned char> blocks(outputs * blocks_of(inputs) * block_bytes(kind));
    quantize_blocks(weight.data(), outputs, inputs, kind, blocks.data(), threads(2));
    double error = 0, plain = 0;  // of the usual scale, the largest number's
    for (std::int64_t o = 0; o < outputs; ++o) {
      for (std::int64_t b = 0; b < inputs; b += 32) {
        float largest = 0;
        for (std::int64_t i = b; i < std::min(b + 32, inputs); ++i) {
          largest = std::max(largest, std::fabs(weight[o * inputs + i]));
        }
        const double scale = largest / steps;
        for (std::int64_t i = b; i < std::min(b + 32, inputs); ++i) {
          const double value = weight[o * inputs + i], got = decoded(blocks, kind, inputs, o, i);
          EXPECT_LE(std::fabs(value - got), 1.25 * scale);
          error += (value - got) * (value - got);
          plain += std::pow(value - scale * std::nearbyint(value / scale), 2);
        }
      }
    }
    EXPECT_LE(error, kind == WeightBlocks::kQ8_0 ? 1.05 * plain : plain);
    std::vector<unsigned char> packed(packed_blocks_size(outputs, inputs, kind));
    pack_blocks(blocks.data(), outputs, inputs, kind, packed.data(), threads(2));
    std::vector<float> unpacked(outputs * inputs);
    unpack_numbers(packed.data(), outputs, inputs, kind, unpacked.data());
    for (std::int64_t o = 0; o < outputs; ++o) {
      for (std::int64_t i = 0; i < inputs; ++i) {
        ASSERT_EQ(unpacked[o * inputs + i], static_cast<float>(decoded(blocks, kind, inputs, o, i)));
      }
    }
  }
}

}  // namespace
