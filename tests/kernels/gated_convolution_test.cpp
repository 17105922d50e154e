// The gated convolution of every backend against the scalar float64 reference: maps, channels that fill no vector,
// dtypes, threads; and the reference's gradients against finite differences of its own values.
#include "moh/kernels/gated_convolution.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "moh/kernels/reference/element.h"
#include "moh/kernels/reference/gated_convolution.h"
#include "tests/kernels/backend_test_case.h"

namespace {

using namespace moh::kernels;
using moh::kernels::reference::from_double;
using moh::kernels::reference::to_double;

struct Shape {
  std::int64_t batch, height, width, channels;
};
const Shape kShapes[] = {{1, 1, 1, 1}, {2, 3, 5, 16}, {1, 17, 4, 33}, {2, 9, 6, 85}, {1, 1, 13, 40}, {1, 14, 1, 530}};

struct Case {
  GatedConvolutionParams p;
  std::vector<char> input, grad_out, out, grad_input;
  std::vector<float> weight, bias, grad_weight, grad_bias;

  Case(const Shape& s, DType dtype, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal(0, 1.5);
    const std::int64_t count = s.batch * s.height * s.width * s.channels, size = size_of(dtype);
    const auto draw = [&](std::vector<char>& bytes, std::int64_t elements) {
      bytes.resize(static_cast<std::size_t>(elements * size));
      for (std::int64_t i = 0; i < elements; ++i) from_double(&bytes[i * size], dtype, normal(random));
    };
    draw(input, 2 * count);
    draw(grad_out, count);
    out.assign(static_cast<std::size_t>(count * size), 0x5a);
    grad_input.assign(static_cast<std::size_t>(2 * count * size), 0x5a);
    for (std::vector<float>* values : {&weight, &grad_weight}) values->resize(static_cast<std::size_t>(9 * s.channels));
    for (std::vector<float>* values : {&bias, &grad_bias}) values->resize(static_cast<std::size_t>(s.channels));
    for (float& value : weight) value = static_cast<float>(normal(random));
    for (float& value : bias) value = static_cast<float>(normal(random));
    p = {.batch = s.batch,
         .height = s.height,
         .width = s.width,
         .channels = s.channels,
         .dtype = dtype,
         .input = input.data(),
         .weight = weight.data(),
         .bias = bias.data(),
         .out = out.data(),
         .grad_out = grad_out.data(),
         .grad_input = grad_input.data(),
         .grad_weight = grad_weight.data(),
         .grad_bias = grad_bias.data(),
         .parallel = {}};
  }
  Case(const Case&) = delete;

  std::vector<double> values(const std::vector<char>& bytes) const {
    std::vector<double> all;
    for (std::size_t i = 0; i < bytes.size(); i += size_of(p.dtype)) all.push_back(to_double(&bytes[i], p.dtype));
    return all;
  }
  // out, grad_input, grad_weight, grad_bias.
  std::vector<std::vector<double>> run(void (*forward)(const GatedConvolutionParams&),
                                       void (*backward)(const GatedConvolutionParams&), int count) {
    p.parallel = threads(count);
    forward(p);
    backward(p);
    return {values(out),
            values(grad_input),
            {grad_weight.begin(), grad_weight.end()},
            {grad_bias.begin(), grad_bias.end()}};
  }
};

TEST(GatedConvolution, EveryBackendAgreesWithTheReference) {
  for (const Backend& backend : backends()) {
    if (!backend.automatic() || !backend.unavailable_reason().empty()) continue;
    if (backend.gated_convolution_forward == nullptr) continue;
    unsigned seed = 1;
    for (const Shape& shape : kShapes) {
      for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
        Case test(shape, dtype, seed++);
        const auto expected = test.run(reference::gated_convolution_forward, reference::gated_convolution_backward, 1);
        const double tolerance = dtype == DType::kFloat32 ? 2e-6 : dtype == DType::kFloat16 ? 1e-3 : 8e-3;
        const auto single = test.run(backend.gated_convolution_forward, backend.gated_convolution_backward, 1);
        for (std::size_t i = 0; i < expected.size(); ++i) {
          double scale = 1;
          for (const double value : expected[i]) scale = std::max(scale, std::abs(value));
          for (std::size_t k = 0; k < expected[i].size(); ++k) {
            ASSERT_NEAR(single[i][k], expected[i][k], tolerance * scale)
                << backend.name << " " << name_of(dtype) << " " << shape.height << "x" << shape.width << "x"
                << shape.channels << ", result " << i << ", element " << k;
          }
        }
        EXPECT_EQ(test.run(backend.gated_convolution_forward, backend.gated_convolution_backward, 3), single)
            << "another number of threads gives other bits";
      }
    }
  }
}

// One pixel of one channel, gated by 1: GELU alone.
float gelu_of(const Backend& backend, float x) {
  const float input[2] = {x, 1}, weight[9] = {0, 0, 0, 0, 1, 0, 0, 0, 0}, bias = 0;
  float out = 77;
  GatedConvolutionParams p{.batch = 1, .height = 1, .width = 1, .channels = 1};
  p.input = input;
  p.weight = weight;
  p.bias = &bias;
  p.out = &out;
  backend.gated_convolution_forward(p);
  return out;
}

// GELU far from zero: its tails, and values that are not numbers.
TEST(GatedConvolution, TailsOfGelu) {
  const float kInfinity = std::numeric_limits<float>::infinity();
  for (const Backend& backend : backends()) {
    if (!backend.automatic() || !backend.unavailable_reason().empty()) continue;
    if (backend.gated_convolution_forward == nullptr) continue;
    for (float x = -40; x <= 40; x += 0.37F) {
      const float out = gelu_of(backend, x);
      const double expected = x * 0.5 * std::erfc(-static_cast<double>(x) / std::sqrt(2.0));
      ASSERT_NEAR(out, expected, 1e-30 + 4e-6 * std::abs(expected) * (1 + x * x * 0.05)) << backend.name << " " << x;
    }
    for (const float x : {kInfinity, std::nanf("")}) {
      const float out = gelu_of(backend, x);
      EXPECT_TRUE(std::isnan(x) ? std::isnan(out) : out == kInfinity) << backend.name << " " << out;
    }
  }
}

TEST(GatedConvolution, TheReferencesGradientsAreDifferences) {
  Case test({1, 3, 4, 2}, DType::kFloat64, 5);
  const auto objective = [&] {
    reference::gated_convolution_forward(test.p);
    const auto out = test.values(test.out), grad = test.values(test.grad_out);
    double sum = 0;
    for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * grad[i];
    return sum;
  };
  reference::gated_convolution_backward(test.p);
  const auto grad_input = test.values(test.grad_input);
  auto* const input = reinterpret_cast<double*>(test.input.data());
  for (std::size_t i = 0; i < grad_input.size(); ++i) {
    constexpr double kStep = 1e-5;
    const double before = input[i];
    input[i] = before + kStep;
    const double above = objective();
    input[i] = before - kStep;
    const double below = objective();
    input[i] = before;
    EXPECT_NEAR((above - below) / (2 * kStep), grad_input[i], 1e-7) << i;
  }
  for (const auto& [values, gradient] :
       {std::pair(&test.weight, &test.grad_weight), std::pair(&test.bias, &test.grad_bias)}) {
    for (std::size_t i = 0; i < values->size(); ++i) {
      constexpr float kStep = 0.0078125F;  // exact in fp32
      const float before = (*values)[i];
      (*values)[i] = before + kStep;
      const float up = (*values)[i];
      const double above = objective();
      (*values)[i] = before - kStep;
      const double below = objective(), width = static_cast<double>(up) - (*values)[i];
      (*values)[i] = before;
      EXPECT_NEAR((above - below) / width, (*gradient)[i], 2e-3 * (1 + std::abs((*gradient)[i]))) << i;
    }
  }
}

}  // namespace
