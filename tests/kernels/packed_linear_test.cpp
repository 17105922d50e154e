// Linear maps by packed weights: every backend against a float64 sum written anew, and the same bits for a row whatever
// else is in the call and however many threads work.
#include "moh/kernels/packed_linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "moh/kernels/reference/element.h"
#include "tests/kernels/backend_test_case.h"

namespace {

using namespace moh::kernels;
using moh::kernels::reference::from_double;
using moh::kernels::reference::to_double;

struct Case {
  PackedLinearParams p;
  std::vector<char> x, weight, packed, y;
  std::vector<float> bias;

  Case(std::int64_t rows, std::int64_t outputs, std::int64_t inputs, DType dtype, DType weight_dtype, bool with_bias,
       std::int64_t gap) {
    std::mt19937 random(static_cast<unsigned>(rows + outputs * 7 + inputs * 31));
    std::normal_distribution<double> normal;
    const auto fill = [&](std::vector<char>& data, std::int64_t count, DType type) {
      data.resize(static_cast<std::size_t>(count * size_of(type)));
      for (std::int64_t i = 0; i < count; ++i) from_double(&data[i * size_of(type)], type, normal(random));
    };
    fill(x, rows * (inputs + gap), dtype);
    fill(weight, outputs * inputs, weight_dtype);
    packed.resize(static_cast<std::size_t>(packed_size(outputs, inputs) * size_of(weight_dtype)));
    pack_weight(weight.data(), size_of(weight_dtype), outputs, inputs, inputs, 1, packed.data(), threads(3));
    y.assign(static_cast<std::size_t>(rows * outputs * size_of(dtype)), 0x5a);
    for (std::int64_t o = 0; o < outputs && with_bias; ++o) bias.push_back(static_cast<float>(normal(random)));
    p = {.rows = rows, .inputs = inputs, .outputs = outputs, .dtype = dtype, .weight_dtype = weight_dtype};
    p.x = {x.data(), {inputs + gap, 1}};
    p.weight = packed.data();
    p.bias = with_bias ? bias.data() : nullptr;
    p.y = {y.data(), {outputs, 1}};
  }
  double expected(std::int64_t r, std::int64_t o) const {
    double sum = bias.empty() ? 0 : bias[o];
    for (std::int64_t i = 0; i < p.inputs; ++i) {
      sum += to_double(&x[(r * p.x.stride[0] + i) * size_of(p.dtype)], p.dtype) *
             to_double(&weight[(o * p.inputs + i) * size_of(p.weight_dtype)], p.weight_dtype);
    }
    return sum;
  }
};

class PackedLinearOnBackend : public BackendTest {};

TEST_P(PackedLinearOnBackend, EqualsTheSum) {
  const struct {
    DType dtype, weight;
    double tolerance;
  } types[] = {{DType::kFloat32, DType::kFloat32, 2e-5},
               {DType::kFloat32, DType::kBFloat16, 2e-5},
               {DType::kBFloat16, DType::kBFloat16, 8e-3},
               {DType::kFloat16, DType::kFloat16, 1e-3}};
  const struct {
    std::int64_t rows, outputs, inputs;
  } shapes[] = {{1, 1, 1}, {1, 130, 96}, {2, 64, 33}, {5, 65, 7}, {7, 200, 128}, {100, 72, 40}, {0, 8, 8}};
  for (const auto& type : types) {
    for (const auto& shape : shapes) {
      for (const bool bias : {false, true}) {
        Case c(shape.rows, shape.outputs, shape.inputs, type.dtype, type.weight, bias, bias ? 3 : 0);
        c.p.parallel = threads(2);
        backend_->packed_linear(c.p);
        for (std::int64_t r = 0; r < shape.rows; ++r) {
          for (std::int64_t o = 0; o < shape.outputs; ++o) {
            const double got = to_double(&c.y[(r * shape.outputs + o) * size_of(type.dtype)], type.dtype);
            const double wanted = c.expected(r, o);
            ASSERT_LE(std::fabs(got - wanted),
                      type.tolerance * (std::fabs(wanted) + std::sqrt(static_cast<double>(shape.inputs))))
                << name_of(type.dtype) << " " << name_of(type.weight) << " R=" << shape.rows << " row " << r
                << " output " << o;
          }
        }
      }
    }
  }
}

TEST_P(PackedLinearOnBackend, ARowDoesNotDependOnTheOthersToTheBit) {
  for (const DType type : {DType::kFloat32, DType::kBFloat16}) {
    Case all(103, 130, 96, type, type, true, 0);
    all.p.parallel = threads(7);
    backend_->packed_linear(all.p);
    const std::int64_t size = 130 * size_of(type);
    for (const std::int64_t count : {1, 2, 3, 5, 6, 50}) {
      for (std::int64_t first = 0; first + count <= 103; first += 17) {
        Case some(103, 130, 96, type, type, true, 0);
        some.p.rows = count;
        some.p.x.data = some.x.data() + first * 96 * size_of(type);
        backend_->packed_linear(some.p);
        EXPECT_EQ(std::memcmp(some.y.data(), all.y.data() + first * size, static_cast<std::size_t>(count * size)), 0)
            << count << " rows from " << first;
      }
    }
  }
}

// Where a head is not used x is zero, or the results are wanted to be.
TEST_P(PackedLinearOnBackend, SkippedHeadsChangeNoBit) {
  using Side = HeadSides::Side;
  for (const DType type : {DType::kFloat32, DType::kBFloat16}) {
    for (const Side side : {Side::kInputs, Side::kOutputs}) {
      constexpr std::int64_t kRows = 29, kHeads = 6, kSize = 32, kAll = kHeads * kSize;
      Case skipped(kRows, kAll, kAll, type, type, true, 0), whole(kRows, kAll, kAll, type, type, true, 0);
      std::vector<float> gates(kRows * kHeads);
      for (std::int64_t r = 0; r < kRows; ++r) {
        for (std::int64_t h = 0; h < kHeads; ++h) {
          gates[r * kHeads + h] = (r / 5 + h) % 3 != 0 ? 0.5F : 0.0F;
          if (gates[r * kHeads + h] != 0 || side == Side::kOutputs) continue;
          for (Case* const each : {&skipped, &whole}) {
            std::memset(&each->x[(r * kAll + h * kSize) * size_of(type)], 0, kSize * size_of(type));
          }
        }
      }
      skipped.p.heads = {side, gates.data(), kHeads, kSize};
      backend_->packed_linear(skipped.p);
      backend_->packed_linear(whole.p);
      for (std::int64_t r = 0; r < kRows; ++r) {
        for (std::int64_t o = 0; o < kAll; ++o) {
          const std::int64_t at = (r * kAll + o) * size_of(type);
          const bool zero = side == Side::kOutputs && gates[r * kHeads + o / kSize] == 0;
          ASSERT_EQ(to_double(&skipped.y[at], type), zero ? 0 : to_double(&whole.y[at], type))
              << "row " << r << " output " << o;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Packed, PackedLinearOnBackend, testing::ValuesIn(backends_with(&Backend::packed_linear)),
                         [](const auto& info) { return info.param; });

}  // namespace
