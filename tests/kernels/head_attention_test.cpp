// Every backend against the scalar float64 reference over one table of shapes, dtypes and gates; the reference itself
// against finite differences.
#include "moh/kernels/head_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include "moh/base/error.h"
#include "moh/kernels/reference/head_attention.h"

namespace {

using namespace moh::kernels;

enum class Gates { kNone, kOneHead, kSome, kAll };

struct Shape {
  std::int64_t batch, queries, keys, heads, kv_heads, dim;
};

const Shape kShapes[] = {{1, 1, 1, 1, 1, 1},      {2, 1, 300, 8, 2, 64},   {1, 1, 1000, 4, 4, 72},
                         {1, 3, 700, 8, 1, 128},  {2, 5, 5, 4, 4, 8},      {1, 33, 33, 6, 2, 24},
                         {1, 13, 40, 4, 1, 16},   {1, 40, 13, 4, 2, 16},   {1, 97, 97, 2, 2, 80},
                         {1, 129, 129, 2, 1, 96}, {1, 200, 260, 3, 3, 64}, {1, 101, 101, 2, 2, 256},
                         {1, 7, 0, 2, 1, 8},      {2, 257, 257, 2, 1, 5}};

// All arrays of one case, with strides of `gap` unused elements between rows to prove that strides are obeyed.
struct Case {
  HeadAttentionParams p;
  std::vector<std::uint8_t> query, key, value, bias, out, grad_out, grad_query, grad_key, grad_value;
  std::vector<float> gates, lse, grad_gates, grad_bias;

  static void put(std::uint8_t* to, DType dtype, double value) {
    if (dtype == DType::kFloat32) {
      const auto v = static_cast<float>(value);
      std::memcpy(to, &v, 4);
    } else if (dtype == DType::kBFloat16) {
      const auto v = static_cast<float>(value);
      std::uint32_t bits;
      std::memcpy(&bits, &v, 4);
      const auto half = static_cast<std::uint16_t>(bits >> 16);
      std::memcpy(to, &half, 2);
    } else if (dtype == DType::kFloat16) {
      const auto v = static_cast<_Float16>(value);
      std::memcpy(to, &v, 2);
    } else {
      std::memcpy(to, &value, 8);
    }
  }
  static double get(const std::uint8_t* from, DType dtype) {
    if (dtype == DType::kFloat32) {
      float v;
      std::memcpy(&v, from, 4);
      return v;
    }
    if (dtype == DType::kFloat16) {
      _Float16 v;
      std::memcpy(&v, from, 2);
      return static_cast<double>(v);
    }
    if (dtype == DType::kBFloat16) {
      std::uint16_t half;
      std::memcpy(&half, from, 2);
      const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
      float v;
      std::memcpy(&v, &bits, 4);
      return v;
    }
    double v;
    std::memcpy(&v, from, 8);
    return v;
  }

  template <class Tensor>
  void place(Tensor& tensor, std::vector<std::uint8_t>& data, std::int64_t a, std::int64_t b, std::int64_t c,
             std::int64_t d, std::int64_t gap, std::mt19937& random) {
    tensor.stride[3] = 1;
    tensor.stride[2] = d + gap;
    tensor.stride[1] = c * tensor.stride[2];
    tensor.stride[0] = b * tensor.stride[1];
    const std::int64_t count = std::max<std::int64_t>(a * tensor.stride[0], 1);
    data.resize(count * size_of(p.dtype));
    std::normal_distribution<double> normal;
    for (std::int64_t i = 0; i < count; ++i) put(&data[i * size_of(p.dtype)], p.dtype, normal(random));
    tensor.data = data.data();
  }

  Case(const Shape& s, DType dtype, Gates kind, bool causal, bool with_bias, std::int64_t gap, unsigned seed) {
    std::mt19937 random(seed);
    p.batch = s.batch;
    p.queries = s.queries;
    p.keys = s.keys;
    p.num_heads = s.heads;
    p.num_kv_heads = s.kv_heads;
    p.head_dim = s.dim;
    p.causal = causal;
    p.dtype = dtype;
    p.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(s.dim)));
    place(p.query, query, s.batch, s.queries, s.heads, s.dim, gap, random);
    place(p.key, key, s.batch, s.keys, s.kv_heads, s.dim, gap, random);
    place(p.value, value, s.batch, s.keys, s.kv_heads, s.dim, gap, random);
    place(p.out, out, s.batch, s.queries, s.heads, s.dim, gap, random);
    place(p.grad_out, grad_out, s.batch, s.queries, s.heads, s.dim, gap, random);
    place(p.grad_query, grad_query, s.batch, s.queries, s.heads, s.dim, gap, random);
    place(p.grad_key, grad_key, s.batch, s.keys, s.kv_heads, s.dim, gap, random);
    place(p.grad_value, grad_value, s.batch, s.keys, s.kv_heads, s.dim, gap, random);
    if (with_bias) place(p.bias, bias, s.batch, s.heads, s.queries, s.keys, gap, random);
    gates.resize(s.batch * s.queries * s.heads);
    for (std::size_t i = 0; i < gates.size(); ++i) {
      const auto head = static_cast<std::int64_t>(i) % s.heads;
      const bool on = kind == Gates::kAll || (kind == Gates::kOneHead && head == s.heads - 1) ||
                      (kind == Gates::kSome && random() % 2 == 0);
      gates[i] = on ? static_cast<float>(random() % 200 + 1) / 100.0F - 0.005F : 0.0F;
    }
    lse.resize(s.batch * s.heads * s.queries);
    grad_gates.assign(gates.size(), 7.0F);
    grad_bias.assign(with_bias ? s.batch * s.heads * s.queries * s.keys : 0, 7.0F);
    p.gates = gates.data();
    p.lse = lse.data();
    p.grad_gates = grad_gates.data();
    p.grad_bias = with_bias ? grad_bias.data() : nullptr;
    p.out_saved.data = out.data();
    for (int i = 0; i < 4; ++i) p.out_saved.stride[i] = p.out.stride[i];
  }

  // The values of a [A, B, C, D] output without its gaps.
  std::vector<double> values(const Output4& tensor, std::int64_t b, std::int64_t c) const {
    std::vector<double> result;
    for (std::int64_t i = 0; i < p.batch; ++i)
      for (std::int64_t j = 0; j < b; ++j)
        for (std::int64_t k = 0; k < c; ++k)
          for (std::int64_t l = 0; l < p.head_dim; ++l) {
            const std::int64_t at = i * tensor.stride[0] + j * tensor.stride[1] + k * tensor.stride[2] + l;
            result.push_back(get(static_cast<const std::uint8_t*>(tensor.data) + at * size_of(p.dtype), p.dtype));
          }
    return result;
  }
};

void expect_close(const char* what, const std::vector<double>& got, const std::vector<double>& expected,
                  double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  double scale = 1;
  for (const double value : expected) scale = std::max(scale, std::fabs(value));
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::fabs(got[i] - expected[i]) <= tolerance * scale) continue;
    if (std::isinf(expected[i]) && got[i] == expected[i]) continue;
    FAIL() << what << "[" << i << "] is " << got[i] << ", expected " << expected[i];
  }
}

std::vector<double> widen(const std::vector<float>& values) { return {values.begin(), values.end()}; }

Parallel threads(int count) {
  Parallel parallel;
  parallel.num_threads = count;
  parallel.run = [](int workers, Parallel::Body body, void* context) {
    std::vector<std::thread> pool;
    for (int i = 0; i < workers; ++i) pool.emplace_back(body, context, i);
    for (auto& thread : pool) thread.join();
  };
  return parallel;
}

class OnBackend : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const Backend& backend : head_attention_backends()) {
      if (backend.name == GetParam()) backend_ = &backend;
    }
    ASSERT_NE(backend_, nullptr);
    if (!backend_->unavailable_reason().empty()) GTEST_SKIP() << backend_->unavailable_reason();
  }
  const Backend* backend_ = nullptr;
};

TEST_P(OnBackend, ForwardAndBackwardEqualTheReference) {
  const struct {
    DType dtype;
    double tolerance;
  } dtypes[] = {{DType::kFloat32, 1e-5}, {DType::kBFloat16, 1.6e-2}, {DType::kFloat16, 2e-3}};
  unsigned seed = 0;
  for (const auto& [dtype, tolerance] : dtypes) {
    for (const Shape& shape : kShapes) {
      for (const Gates kind : {Gates::kNone, Gates::kOneHead, Gates::kSome, Gates::kAll}) {
        for (const bool causal : {false, true}) {
          const bool with_bias = ++seed % 3 == 0;
          SCOPED_TRACE(testing::Message()
                       << name_of(dtype) << " T=" << shape.queries << " S=" << shape.keys << " H=" << shape.heads << "/"
                       << shape.kv_heads << " D=" << shape.dim << " gates=" << static_cast<int>(kind)
                       << " causal=" << causal << " bias=" << with_bias);
          const std::int64_t gap = seed % 2 == 0 ? 3 : 0;
          Case expected(shape, dtype, kind, causal, with_bias, gap, seed),
              got(shape, dtype, kind, causal, with_bias, gap, seed);
          got.p.parallel = threads(static_cast<int>(seed % 4) + 1);
          reference::head_attention_forward(expected.p);
          backend_->forward(got.p);
          expect_close("out", got.values(got.p.out, shape.queries, shape.heads),
                       expected.values(expected.p.out, shape.queries, shape.heads), tolerance);
          expect_close("lse", widen(got.lse), widen(expected.lse), 1e-4);
          reference::head_attention_backward(expected.p);
          backend_->backward(got.p);
          expect_close("grad_query", got.values(got.p.grad_query, shape.queries, shape.heads),
                       expected.values(expected.p.grad_query, shape.queries, shape.heads), 4 * tolerance);
          expect_close("grad_key", got.values(got.p.grad_key, shape.keys, shape.kv_heads),
                       expected.values(expected.p.grad_key, shape.keys, shape.kv_heads), 4 * tolerance);
          expect_close("grad_value", got.values(got.p.grad_value, shape.keys, shape.kv_heads),
                       expected.values(expected.p.grad_value, shape.keys, shape.kv_heads), 4 * tolerance);
          expect_close("grad_gates", widen(got.grad_gates), widen(expected.grad_gates), 8 * tolerance);
          expect_close("grad_bias", widen(got.grad_bias), widen(expected.grad_bias), 8 * tolerance);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(OnBackend, ResultsRepeatToTheBitWhateverThreadComesFirst) {
  const Shape shape{2, 150, 300, 4, 2, 32};
  std::vector<std::uint8_t> first;
  for (int run = 0; run < 5; ++run) {
    Case c(shape, DType::kFloat32, Gates::kSome, true, false, 0, 3);
    c.p.parallel = threads(5);
    backend_->forward(c.p);
    backend_->backward(c.p);
    std::vector<std::uint8_t> all = c.out;
    for (const auto* part : {&c.grad_query, &c.grad_key, &c.grad_value})
      all.insert(all.end(), part->begin(), part->end());
    if (run == 0) first = all;
    EXPECT_EQ(all, first);
  }
}

TEST_P(OnBackend, NanReachesTheOutput) {
  Case c({1, 20, 20, 2, 2, 16}, DType::kFloat32, Gates::kAll, true, false, 0, 1);
  const float nan = std::nanf("");
  std::memcpy(&c.query[0], &nan, 4);
  backend_->forward(c.p);
  EXPECT_TRUE(std::isnan(c.values(c.p.out, 20, 2)[0]));
}

std::vector<std::string> backend_names() {
  std::vector<std::string> names;
  for (const Backend& backend : head_attention_backends()) {
    if (backend.forward != reference::head_attention_forward) names.emplace_back(backend.name);
  }
  return names;
}
INSTANTIATE_TEST_SUITE_P(Table, OnBackend, testing::ValuesIn(backend_names()),
                         [](const auto& info) { return info.param; });

// d(sum out * grad_out) by central differences in float64 storage.
TEST(Reference, GradientsAreTheDifferencesOfTheForward) {
  const Shape shape{1, 4, 5, 4, 2, 3};
  for (const bool causal : {false, true}) {
    Case c(shape, DType::kFloat64, Gates::kSome, causal, true, 1, 4);
    reference::head_attention_forward(c.p);
    reference::head_attention_backward(c.p);
    const auto loss = [&] {
      reference::head_attention_forward(c.p);
      const auto out = c.values(c.p.out, shape.queries, shape.heads);
      Output4 weights;
      weights.data = const_cast<void*>(c.p.grad_out.data);
      std::copy(c.p.grad_out.stride, c.p.grad_out.stride + 4, weights.stride);
      const auto grad = c.values(weights, shape.queries, shape.heads);
      double sum = 0;
      for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * grad[i];
      return sum;
    };
    const struct {
      std::vector<std::uint8_t>*input, *gradient;
    } pairs[] = {{&c.query, &c.grad_query}, {&c.key, &c.grad_key}, {&c.value, &c.grad_value}};
    for (const auto& [input, gradient] : pairs) {
      for (std::size_t at = 0; at < input->size(); at += 8) {
        const double old = Case::get(&(*input)[at], DType::kFloat64);
        Case::put(&(*input)[at], DType::kFloat64, old + 1e-5);
        const double above = loss();
        Case::put(&(*input)[at], DType::kFloat64, old - 1e-5);
        const double below = loss();
        Case::put(&(*input)[at], DType::kFloat64, old);
        if (at / 8 % 4 == 3) continue;  // the gap between rows: nothing is written there
        EXPECT_NEAR((above - below) / 2e-5, Case::get(&(*gradient)[at], DType::kFloat64), 1e-6);
      }
    }
  }
}

TEST(Table, ChoosesByNameOrByReason) {
  HeadAttentionParams params;
  std::string reason;
  params.dtype = DType::kFloat64;
  EXPECT_EQ(choose_head_attention_backend(params, false, &reason), nullptr);
  EXPECT_NE(reason.find("fp64"), std::string::npos);
  EXPECT_THROW(choose_head_attention_backend(params, false, nullptr, "portable"), moh::Error);
  params.dtype = DType::kFloat32;
  EXPECT_STREQ(choose_head_attention_backend(params, false, nullptr, "portable")->name, "portable");
  EXPECT_EQ(choose_head_attention_backend(params, false, &reason, "composite"), nullptr);
  force_backend("reference");
  EXPECT_STREQ(choose_head_attention_backend(params, true, nullptr)->name, "reference");
  force_backend("");
  EXPECT_TRUE(choose_head_attention_backend(params, true, nullptr)->automatic);
  EXPECT_THROW(force_backend("neon9"), moh::Error);
}

}  // namespace
