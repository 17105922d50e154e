// Aggregated attention of every backend against the scalar float64 reference: maps, heads, windows, dtypes, densities,
// strides and threads; and the reference's gradients against finite differences of its own values.
#include "moh/kernels/aggregated_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <thread>
#include <vector>

#include "moh/kernels/backend.h"
#include "moh/kernels/reference/aggregated_attention.h"
#include "moh/kernels/reference/element.h"
#include "tests/kernels/listed_rows.h"

namespace {

using namespace moh::kernels;
using moh::kernels::reference::from_double;
using moh::kernels::reference::to_double;

struct Shape {
  std::int64_t batch, height, width, pooled, heads, dim, window;
};

const Shape kShapes[] = {{1, 1, 1, 1, 1, 1, 3},   {2, 4, 4, 4, 3, 24, 3},   {1, 5, 7, 6, 2, 8, 3},
                         {2, 9, 3, 2, 1, 5, 1},   {1, 20, 6, 17, 2, 24, 3}, {1, 28, 28, 49, 2, 24, 3},
                         {1, 40, 2, 3, 1, 70, 5}, {1, 3, 30, 130, 2, 16, 3}};

struct Case {
  AggregatedAttentionParams p;
  ListedRows lists;
  std::vector<std::vector<char>> strided;                // query, key, value, pool_key, pool_value, grad_out
  std::vector<std::vector<char>> results;                // out and the five strided gradients
  std::vector<std::vector<float>> plain, plain_results;  // the contiguous ones

  Case(const Shape& s, DType dtype, double density, std::int64_t gap, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    p.batch = s.batch;
    p.height = s.height;
    p.width = s.width;
    p.pooled = s.pooled;
    p.num_heads = s.heads;
    p.head_dim = s.dim;
    p.window = s.window;
    p.dtype = dtype;
    const std::int64_t map = p.map(), places = p.places();
    strided.resize(6);
    results.resize(6);
    const std::int64_t tokens[] = {map, map, map, s.pooled, s.pooled, map};
    Strided<const void*, 4>* const inputs[] = {&p.query, &p.key, &p.value, &p.pool_key, &p.pool_value, &p.grad_out};
    Strided<void*, 4>* const outputs[] = {&p.grad_query,    &p.grad_key,        &p.grad_value,
                                          &p.grad_pool_key, &p.grad_pool_value, &p.out};
    const std::int64_t row = s.heads * s.dim + gap;  // unused elements between tokens
    for (int i = 0; i < 6; ++i) {
      const std::int64_t count = s.batch * tokens[i] * row;
      strided[i].resize(static_cast<std::size_t>(count * size_of(dtype)));
      results[i].assign(static_cast<std::size_t>(count * size_of(dtype)), 0x5a);
      for (std::int64_t k = 0; k < count; ++k) from_double(&strided[i][k * size_of(dtype)], dtype, normal(random));
      *inputs[i] = {strided[i].data(), {tokens[i] * row, row, s.dim, 1}};
      *outputs[i] = {results[i].data(), {tokens[i] * row, row, s.dim, 1}};
    }
    const std::int64_t sizes[] = {
        s.batch * map * s.heads,  s.heads * s.dim,          s.heads,          s.heads * places,
        s.heads * map * s.pooled, s.heads * s.dim * places, s.heads * places, map};
    for (const std::int64_t size : sizes) {
      plain.emplace_back(size);
      plain_results.emplace_back(size, 77.0F);
      for (float& value : plain.back()) value = static_cast<float>(normal(random));
    }
    for (float& gate : plain[0]) {
      if (std::uniform_real_distribution<double>()(random) >= density) gate = 0;
    }
    for (float& value : plain[2]) value = std::abs(value) + 0.5F;
    for (float& value : plain[7]) value = std::abs(value) + 0.5F;
    bind();
  }
  Case(const Case&) = delete;

  void bind() {
    const float** const inputs[] = {&p.selection.gates, &p.query_embedding, &p.temperature, &p.local_bias,
                                    &p.pool_bias, &p.tokens,          &p.token_bias,  &p.position_scale};
    float** const outputs[] = {&p.grad_gates,     &p.grad_query_embedding, &p.grad_temperature, &p.grad_local_bias,
                               &p.grad_pool_bias, &p.grad_tokens,          &p.grad_token_bias};
    for (std::size_t i = 0; i < std::size(inputs); ++i) *inputs[i] = plain[i].data();
    p.selection = lists.of(plain[0].data(), p.batch * p.map(), p.num_heads);
    for (std::size_t i = 0; i < std::size(outputs); ++i) *outputs[i] = plain_results[i].data();
  }

  // Everything that forward and backward write, one list a tensor; gaps between tokens left out.
  std::vector<std::vector<double>> run(void (*forward)(const AggregatedAttentionParams&),
                                       void (*backward)(const AggregatedAttentionParams&), int threads) {
    p.parallel.num_threads = threads;
    p.parallel.run = [](int workers, Parallel::Body body, void* context) {
      std::vector<std::thread> pool;
      for (int i = 0; i < workers; ++i) pool.emplace_back(body, context, i);
      for (std::thread& thread : pool) thread.join();
    };
    forward(p);
    backward(p);
    std::vector<std::vector<double>> all;
    const Strided<void*, 4>* const outputs[] = {&p.out,        &p.grad_query,    &p.grad_key,
                                                &p.grad_value, &p.grad_pool_key, &p.grad_pool_value};
    for (int i = 0; i < 6; ++i) {
      auto& values = all.emplace_back();
      for (std::int64_t b = 0; b < p.batch; ++b) {
        for (std::int64_t n = 0; n < (i < 4 ? p.map() : p.pooled); ++n) {
          for (std::int64_t k = 0; k < p.num_heads * p.head_dim; ++k) {
            const std::int64_t place = b * outputs[i]->stride[0] + n * outputs[i]->stride[1] + k;
            values.push_back(to_double(static_cast<char*>(outputs[i]->data) + place * size_of(p.dtype), p.dtype));
          }
        }
      }
    }
    for (int i = 0; i < 7; ++i) all.emplace_back(plain_results[i].begin(), plain_results[i].end());
    return all;
  }
};

const char* const kNames[] = {"out",
                              "grad_query",
                              "grad_key",
                              "grad_value",
                              "grad_pool_key",
                              "grad_pool_value",
                              "grad_gates",
                              "grad_query_embedding",
                              "grad_temperature",
                              "grad_local_bias",
                              "grad_pool_bias",
                              "grad_tokens",
                              "grad_token_bias"};

void expect_same(const std::vector<std::vector<double>>& got, const std::vector<std::vector<double>>& expected,
                 double tolerance, const std::string& what) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(got[i].size(), expected[i].size());
    double scale = 1, worst = 0;
    std::size_t where = 0;
    for (const double value : expected[i]) scale = std::max(scale, std::abs(value));
    for (std::size_t k = 0; k < expected[i].size(); ++k) {
      const double error = std::abs(got[i][k] - expected[i][k]);
      if (!(error <= worst)) {
        worst = error;
        where = k;
      }
    }
    EXPECT_LE(worst, tolerance * scale) << what << ": " << kNames[i] << "[" << where << "] is " << got[i][where]
                                        << ", expected " << expected[i][where];
  }
}

TEST(AggregatedAttention, EveryBackendAgreesWithTheReference) {
  for (const Backend& backend : backends()) {
    if (!backend.automatic() || !backend.unavailable_reason().empty()) continue;
    if (backend.aggregated_forward == nullptr) continue;
    unsigned seed = 1;
    for (const Shape& shape : kShapes) {
      for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
        for (const double density : {0.0, 0.4, 1.0}) {
          Case test(shape, dtype, density, /*gap=*/seed % 3, seed);
          ++seed;
          const auto expected =
              test.run(reference::aggregated_attention_forward, reference::aggregated_attention_backward, 1);
          const double tolerance = dtype == DType::kFloat32 ? 2e-5 : dtype == DType::kFloat16 ? 2e-3 : 1e-2;
          for (const int threads : {1, 3}) {
            const std::string what = std::string(backend.name) + " " + name_of(dtype) + " " +
                                     std::to_string(shape.height) + "x" + std::to_string(shape.width) + " density " +
                                     std::to_string(density) + " threads " + std::to_string(threads);
            expect_same(test.run(backend.aggregated_forward, backend.aggregated_backward, threads), expected, tolerance,
                        what);
          }
        }
      }
    }
  }
}

TEST(AggregatedAttention, SkippedHeadsAreNeverRead) {
  Case test({1, 6, 6, 4, 2, 8, 3}, DType::kFloat32, 1.0, 0, 7);
  for (std::int64_t n = 0; n < 36; ++n) test.plain[0][n * 2 + 1] = 0;  // nobody uses head 1
  test.bind();
  for (auto& tensor : {0, 1, 2, 3, 4, 5}) {
    float* data = reinterpret_cast<float*>(test.strided[tensor].data());
    const std::int64_t tokens = tensor == 3 || tensor == 4 ? 4 : 36;
    for (std::int64_t n = 0; n < tokens; ++n) {
      for (std::int64_t d = 0; d < 8; ++d) data[(n * 2 + 1) * 8 + d] = std::nanf("");
    }
  }
  for (const Backend& backend : backends()) {
    if (backend.aggregated_forward == nullptr || !backend.unavailable_reason().empty()) continue;
    backend.aggregated_forward(test.p);
    const auto* out = reinterpret_cast<const float*>(test.results[5].data());
    for (std::int64_t n = 0; n < 36; ++n) {
      for (std::int64_t d = 0; d < 8; ++d) {
        EXPECT_TRUE(std::isfinite(out[n * 16 + d])) << backend.name;
        EXPECT_EQ(out[n * 16 + 8 + d], 0) << backend.name;
      }
    }
  }
}

// sum(out * grad_out) moves with every input as its gradient says.
TEST(AggregatedAttention, TheReferencesGradientsAreDifferences) {
  Case test({1, 3, 4, 2, 2, 3, 3}, DType::kFloat64, 0.7, 0, 11);
  const auto total = [&] {
    reference::aggregated_attention_forward(test.p);
    double sum = 0;
    for (std::size_t i = 0; i < test.results[5].size(); i += 8) {
      sum += to_double(&test.results[5][i], DType::kFloat64) * to_double(&test.strided[5][i], DType::kFloat64);
    }
    return sum;
  };
  reference::aggregated_attention_backward(test.p);
  for (int tensor = 0; tensor < 5; ++tensor) {
    for (std::size_t i = 0; i < test.strided[tensor].size(); i += 8) {
      char* const element = &test.strided[tensor][i];
      const double kept = to_double(element, DType::kFloat64), step = 1e-5;
      from_double(element, DType::kFloat64, kept + step);
      const double above = total();
      from_double(element, DType::kFloat64, kept - step);
      const double below = total();
      from_double(element, DType::kFloat64, kept);
      EXPECT_NEAR(to_double(&test.results[tensor][i], DType::kFloat64), (above - below) / (2 * step), 1e-6)
          << kNames[tensor + 1] << " " << i / 8;
    }
  }
  for (int tensor = 0; tensor < 7; ++tensor) {
    for (std::size_t i = 0; i < test.plain[tensor].size(); ++i) {
      float& element = test.plain[tensor][i];
      if (tensor == 0 && element == 0) continue;  // a skipped head's gate has no gradient
      const float kept = element, step = 1.0F / 1024;
      element = kept + step;
      const double high = element, above = total();
      element = kept - step;
      const double low = element, below = total();
      element = kept;
      EXPECT_NEAR(test.plain_results[tensor][i], (above - below) / (high - low), 2e-4)
          << kNames[tensor + 6] << " " << i;
    }
  }
}

}  // namespace
