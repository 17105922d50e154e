// The head-skipping projections of every backend against the scalar float64 reference: shapes, dtypes, densities, both
// ways a weight can lie, threads; and the reference against the formula with plain loops over whole matrices.
#include "moh/kernels/projection.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "moh/kernels/backend.h"
#include "moh/kernels/reference/element.h"
#include "moh/kernels/reference/projection.h"
#include "tests/kernels/backend_test_case.h"
#include "tests/kernels/listed_rows.h"
#include "tests/kernels/test_stride.h"

namespace {

using namespace moh::kernels;
using moh::kernels::reference::from_double;
using moh::kernels::reference::to_double;

struct Shape {
  std::int64_t rows, heads, head_dim, width;
};

const Shape kShapes[] = {{1, 1, 1, 1},    {1, 8, 64, 96},   {3, 4, 24, 40},     {5, 4, 8, 7},     {70, 3, 72, 65},
                         {97, 2, 80, 48}, {200, 5, 16, 33}, {130, 4, 128, 260}, {260, 2, 5, 100}, {0, 2, 4, 4}};

// kShared: the first heads for every row, the others for half of the rows.
enum class Density { kNone, kOneHead, kHalf, kShared, kAll };

struct Tensors {
  ProjectionParams p;
  std::vector<float> gates;
  ListedRows lists;
  std::vector<char> x, heads, weight, head_bias, width_bias, out;

  std::vector<char> random_tensor(std::int64_t count, std::mt19937& random) const {
    std::normal_distribution<double> normal;
    std::vector<char> data(static_cast<std::size_t>(std::max<std::int64_t>(count, 1) * size_of(p.dtype)));
    for (std::int64_t i = 0; i < count; ++i) from_double(&data[i * size_of(p.dtype)], p.dtype, normal(random));
    return data;
  }

  // columns_are_heads: the weight is W_O [C, H * D], else W_Q [H * D, C]. gap: unused elements between rows.
  Tensors(const Shape& s, DType dtype, Density density, bool columns_are_heads, std::int64_t gap, unsigned seed) {
    std::mt19937 random(seed);
    p.head_dim = s.head_dim;
    p.width = s.width;
    p.dtype = dtype;
    x = random_tensor(s.rows * (s.width + gap), random);
    heads = random_tensor(s.rows * s.heads * (s.head_dim + gap), random);
    weight = random_tensor(s.heads * s.head_dim * s.width, random);
    head_bias = random_tensor(s.heads * s.head_dim, random);
    width_bias = random_tensor(s.width, random);
    gates.resize(std::max<std::int64_t>(s.rows * s.heads, 1));
    for (std::int64_t i = 0; i < s.rows * s.heads; ++i) {
      const bool on = density == Density::kAll || (density == Density::kOneHead && i % s.heads == s.heads - 1) ||
                      (density == Density::kShared && i % s.heads < (s.heads + 1) / 2) ||
                      ((density == Density::kHalf || density == Density::kShared) && random() % 2 == 0);
      gates[i] = on ? 0.5F - static_cast<float>(random() % 2) : 0.0F;
    }
    p.selection = lists.of(gates.data(), s.rows, s.heads);
    p.x = {x.data(), {s.width + gap, 1}};
    p.heads = {heads.data(), {s.heads * (s.head_dim + gap), s.head_dim + gap, 1}};
    const std::int64_t d_stride = columns_are_heads ? 1 : s.width;
    const std::int64_t c_stride = columns_are_heads ? s.heads * s.head_dim : 1;
    p.weight = {weight.data(), {d_stride * s.head_dim, d_stride, c_stride}};
  }

  using Kernel = void (*)(const ProjectionParams&);
  std::vector<double> run(Kernel kernel, std::int64_t out_elements, std::int64_t s0, std::int64_t s1, std::int64_t s2,
                          const void* bias, int threads) {
    out.assign(static_cast<std::size_t>(std::max<std::int64_t>(out_elements, 1) * size_of(p.dtype)), 0x5a);
    p.out = {out.data(), {s0, s1, s2}};
    p.bias = bias;
    p.parallel = ::threads(threads);
    kernel(p);
    std::vector<double> result;
    for (std::int64_t i = 0; i < out_elements; ++i) result.push_back(to_double(&out[i * size_of(p.dtype)], p.dtype));
    return result;
  }
  std::vector<double> project(Kernel kernel, bool bias, int threads) {
    return run(kernel, p.selection.num_rows * p.selection.num_heads * p.head_dim, p.selection.num_heads * p.head_dim,
               p.head_dim, 1, bias ? head_bias.data() : nullptr, threads);
  }
  std::vector<double> combine(Kernel kernel, bool bias, int threads) {
    return run(kernel, p.selection.num_rows * p.width, p.width, 1, 0, bias ? width_bias.data() : nullptr, threads);
  }
  std::vector<double> gradient(Kernel kernel, int threads) {
    return run(kernel, p.selection.num_heads * p.head_dim * p.width, p.weight.stride[0], p.weight.stride[1],
               p.weight.stride[2], nullptr, threads);
  }
};

void expect_close(const char* what, const std::vector<double>& got, const std::vector<double>& expected,
                  double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  double scale = 1;
  for (const double value : expected) scale = std::max(scale, std::fabs(value));
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_LE(std::fabs(got[i] - expected[i]), tolerance * scale)
        << what << "[" << i << "] is " << got[i] << ", expected " << expected[i];
  }
}

class ProjectionOnBackend : public BackendTest {};

TEST_P(ProjectionOnBackend, ProjectionsEqualTheReference) {
  const struct {
    DType dtype;
    double tolerance;
  } dtypes[] = {{DType::kFloat32, 1e-5}, {DType::kBFloat16, 8e-3}, {DType::kFloat16, 1e-3}};
  unsigned seed = 0;
  for (const auto& [dtype, tolerance] : dtypes) {
    if (!takes(dtype)) continue;
    for (const Shape& shape : kShapes) {
      for (const Density density :
           {Density::kHalf, Density::kNone, Density::kOneHead, Density::kShared, Density::kAll}) {
        for (const bool columns_are_heads : {false, true}) {
          ++seed;
          if (skipped_by_stride(seed)) continue;
          const bool bias = seed % 2 == 0;
          const int threads = seed % 3 == 0 ? 1 : seed % 3 == 1 ? 2 : 5;
          SCOPED_TRACE(testing::Message()
                       << name_of(dtype) << " R=" << shape.rows << " H=" << shape.heads << " D=" << shape.head_dim
                       << " C=" << shape.width << " density=" << static_cast<int>(density)
                       << " columns_are_heads=" << columns_are_heads << " bias=" << bias << " threads=" << threads);
          Tensors t(shape, dtype, density, columns_are_heads, seed % 5 == 0 ? 3 : 0, seed);
          expect_close("heads", t.project(backend_->project_heads, bias, threads),
                       t.project(reference::project_heads, bias, 1), tolerance);
          expect_close("x", t.combine(backend_->combine_heads, bias, threads),
                       t.combine(reference::combine_heads, bias, 1), tolerance);
          expect_close("weight", t.gradient(backend_->weight_gradient, threads),
                       t.gradient(reference::weight_gradient, 1), tolerance);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(ProjectionOnBackend, ProjectionsRepeatToTheBitForAnyNumberOfThreads) {
  Tensors t({150, 4, 40, 300}, some_dtype(), Density::kHalf, true, 0, 3);
  const auto heads = t.project(backend_->project_heads, true, 1), x = t.combine(backend_->combine_heads, true, 1);
  const auto weight = t.gradient(backend_->weight_gradient, 1);
  for (const int threads : {2, 3, 7}) {
    EXPECT_EQ(t.project(backend_->project_heads, true, threads), heads);
    EXPECT_EQ(t.combine(backend_->combine_heads, true, threads), x);
    EXPECT_EQ(t.gradient(backend_->weight_gradient, threads), weight);
  }
}

// What belongs to a head that no row selected may be anything: it is not read.
TEST_P(ProjectionOnBackend, SkippedHeadsOfProjectionsAreNotRead) {
  for (const std::int64_t rows : {2, 100}) {
    Tensors t({rows, 3, 16, 32}, some_dtype(), Density::kOneHead, false, 0, 5);
    std::memset(t.weight.data(), 0xff, t.weight.size() / 3 * 2);  // NaN for all heads but the last
    for (std::int64_t r = 0; r < rows; ++r)
      std::memset(&t.heads[r * 3 * 16 * size_of(t.p.dtype)], 0xff, 2 * 16 * size_of(t.p.dtype));
    for (const auto& result :
         {t.project(backend_->project_heads, false, 2), t.combine(backend_->combine_heads, false, 2),
          t.gradient(backend_->weight_gradient, 2)}) {
      for (const double value : result) ASSERT_TRUE(std::isfinite(value));
    }
  }
}

std::vector<std::string> fused_backends() {
  std::vector<std::string> names;
  for (const Backend& backend : backends()) {
    const bool on_gpu = backend.name == std::string("triton");  // gpu_launch_test.py, and the operators' tests on a GPU
    if (!on_gpu && backend.project_heads != nullptr && backend.project_heads != reference::project_heads)
      names.emplace_back(backend.name);
  }
  return names;
}
INSTANTIATE_TEST_SUITE_P(Projection, ProjectionOnBackend, testing::ValuesIn(fused_backends()),
                         [](const auto& info) { return info.param; });

// With every head selected the three kernels are plain matrix products; with a mask, products of masked matrices.
TEST(ProjectionReference, EqualsMaskedMatrixProducts) {
  for (const bool columns_are_heads : {false, true}) {
    Tensors t({7, 3, 4, 5}, DType::kFloat64, Density::kHalf, columns_are_heads, 2, 11);
    const auto heads = t.project(reference::project_heads, true, 1), x = t.combine(reference::combine_heads, true, 1);
    const auto gradient = t.gradient(reference::weight_gradient, 1);
    const auto number = [](const std::vector<char>& data, std::int64_t i) {
      return to_double(&data[i * 8], DType::kFloat64);
    };
    const auto weight = [&](std::int64_t hd, std::int64_t c) {
      return number(t.weight, columns_are_heads ? c * 12 + hd : hd * 5 + c);
    };
    for (std::int64_t r = 0; r < 7; ++r) {
      for (std::int64_t hd = 0; hd < 12; ++hd) {
        double sum = number(t.head_bias, hd);
        for (std::int64_t c = 0; c < 5; ++c) sum += number(t.x, r * 7 + c) * weight(hd, c);
        EXPECT_NEAR(heads[r * 12 + hd], t.gates[r * 3 + hd / 4] != 0 ? sum : 0, 1e-12);
      }
      for (std::int64_t c = 0; c < 5; ++c) {
        double sum = number(t.width_bias, c);
        for (std::int64_t hd = 0; hd < 12; ++hd) {
          const double mask = t.gates[r * 3 + hd / 4] != 0 ? 1 : 0;
          sum += mask * number(t.heads, (r * 3 + hd / 4) * 6 + hd % 4) * weight(hd, c);
        }
        EXPECT_NEAR(x[r * 5 + c], sum, 1e-12);
      }
    }
    for (std::int64_t hd = 0; hd < 12; ++hd) {
      for (std::int64_t c = 0; c < 5; ++c) {
        double sum = 0;
        for (std::int64_t r = 0; r < 7; ++r) {
          const double mask = t.gates[r * 3 + hd / 4] != 0 ? 1 : 0;
          sum += mask * number(t.heads, (r * 3 + hd / 4) * 6 + hd % 4) * number(t.x, r * 7 + c);
        }
        EXPECT_NEAR(gradient[columns_are_heads ? c * 12 + hd : hd * 5 + c], sum, 1e-12);
      }
    }
  }
}

}  // namespace
