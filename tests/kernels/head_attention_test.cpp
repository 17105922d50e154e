// Every backend against the scalar float64 reference over one table of shapes, dtypes and gates; the reference itself
// against finite differences.
#include "moh/kernels/head_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "moh/base/error.h"
#include "moh/kernels/backend.h"
#include "moh/kernels/reference/head_attention.h"
#include "tests/kernels/backend_test_case.h"
#include "tests/kernels/listed_rows.h"
#include "tests/kernels/test_stride.h"

namespace {

using namespace moh::kernels;
using Bytes = SharedVector<std::uint8_t>;
using Floats = SharedVector<float>;

enum class Gates { kNone, kOneHead, kSome, kAll };
// How [B, T, H, D] lies in memory: rows side by side; three unused elements after each; [B, H, T, D]; every other
// element.
enum class Layout { kDense, kGaps, kTransposed, kEveryOther };
// kBroadcast: one [T, S] for all heads, stride 0. kHiding: -inf for a third of the keys and for every key of some rows.
enum class Bias { kNone, kPlain, kBroadcast, kHiding };
// What a variant adds: windows of 1, 7 and 150 keys (with causal), a soft cap, sinks.
struct Variant {
  std::int64_t window = 0;
  float soft_cap = 0;
  bool sink = false;
};

struct Shape {
  std::int64_t batch, queries, keys, heads, kv_heads, dim;
};

const Shape kShapes[] = {{1, 1, 1, 1, 1, 1},      {2, 1, 300, 8, 2, 64},   {1, 1, 1000, 4, 4, 72},
                         {1, 3, 700, 8, 1, 128},  {2, 5, 5, 4, 4, 8},      {1, 33, 33, 6, 2, 24},
                         {1, 13, 40, 4, 1, 16},   {1, 40, 13, 4, 2, 16},   {1, 97, 97, 2, 2, 80},
                         {1, 129, 129, 2, 1, 96}, {1, 200, 260, 3, 3, 64}, {1, 101, 101, 2, 2, 256},
                         {1, 7, 0, 2, 1, 8},      {2, 257, 257, 2, 1, 5}};

// All arrays of one case.
struct Case {
  HeadAttentionParams p;
  Shape shape;
  std::vector<Sequence> sequences;
  ListedRows lists;
  Bytes query, key, value, bias, out, grad_out, grad_query, grad_key, grad_value;
  Floats gates, lse, grad_gates, grad_bias, sink;

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
  void place(Tensor& tensor, Bytes& data, std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d, Layout layout,
             std::mt19937& random) {
    place(tensor, data, a, b, c, d, layout, random, p.dtype);
  }
  template <class Tensor>
  void place(Tensor& tensor, Bytes& data, std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d, Layout layout,
             std::mt19937& random, DType dtype) {
    tensor.stride[3] = layout == Layout::kEveryOther ? 2 : 1;
    const std::int64_t row = d * tensor.stride[3] + (layout == Layout::kGaps ? 3 : 0);
    tensor.stride[2] = layout == Layout::kTransposed ? b * row : row;
    tensor.stride[1] = layout == Layout::kTransposed ? row : c * row;
    tensor.stride[0] = b * c * row;
    const std::int64_t count = std::max<std::int64_t>(a * tensor.stride[0], 1);
    data.resize(count * size_of(dtype));
    std::normal_distribution<double> normal;
    for (std::int64_t i = 0; i < count; ++i) put(&data[i * size_of(dtype)], dtype, normal(random));
    tensor.data = data.data();
  }

  Case(const Shape& s, DType dtype, Gates kind, bool causal, Bias bias_kind, Layout layout, unsigned seed,
       const Variant& variant = {})
      : shape(s) {
    std::mt19937 random(seed);
    for (std::int64_t b = 0; b < s.batch; ++b) sequences.push_back({.batch = b, .queries = s.queries, .keys = s.keys});
    p.sequences = sequences.data();
    p.num_sequences = s.batch;
    p.rows_per_batch = s.queries;
    p.num_heads = s.heads;
    p.num_kv_heads = s.kv_heads;
    p.head_dim = s.dim;
    p.variant.causal = causal;
    p.variant.window = causal ? variant.window : 0;
    p.variant.soft_cap = variant.soft_cap;
    p.variant.bias_dtype = seed % 2 == 0 ? dtype : dtype == DType::kFloat64 ? dtype : DType::kFloat32;
    p.dtype = dtype;
    p.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(s.dim)));
    place(p.query, query, s.batch, s.queries, s.heads, s.dim, layout, random);
    place(p.key, key, s.batch, s.keys, s.kv_heads, s.dim, layout, random);
    place(p.value, value, s.batch, s.keys, s.kv_heads, s.dim, layout, random);
    place(p.out, out, s.batch, s.queries, s.heads, s.dim, layout, random);
    place(p.grad_out, grad_out, s.batch, s.queries, s.heads, s.dim, layout, random);
    place(p.grad_query, grad_query, s.batch, s.queries, s.heads, s.dim, layout, random);
    place(p.grad_key, grad_key, s.batch, s.keys, s.kv_heads, s.dim, layout, random);
    place(p.grad_value, grad_value, s.batch, s.keys, s.kv_heads, s.dim, layout, random);
    const bool with_bias = bias_kind != Bias::kNone;
    Input4& bias_at = p.variant.bias;
    if (with_bias) place(bias_at, bias, s.batch, s.heads, s.queries, s.keys, layout, random, p.variant.bias_dtype);
    if (bias_kind == Bias::kBroadcast) bias_at.stride[0] = bias_at.stride[1] = 0;
    if (bias_kind == Bias::kHiding) hide(random);
    gates.resize(s.batch * s.queries * s.heads);
    for (std::size_t i = 0; i < gates.size(); ++i) {
      const auto head = static_cast<std::int64_t>(i) % s.heads;
      const bool on = kind == Gates::kAll || (kind == Gates::kOneHead && head == s.heads - 1) ||
                      (kind == Gates::kSome && random() % 2 == 0);
      // Of both signs, and a few so small that fp16 cannot hold the output.
      const float size = random() % 8 == 0 ? 1e-7F : 1.0F;
      gates[i] = on ? size * (static_cast<float>(random() % 400) / 100.0F - 1.995F) : 0.0F;
    }
    lse.resize(s.batch * s.heads * s.queries);
    grad_gates.assign(gates.size(), 7.0F);
    grad_bias.assign(with_bias ? s.batch * s.heads * s.queries * s.keys : 0, 7.0F);
    p.selection = lists.of(gates.data(), s.batch * s.queries, s.heads);
    for (std::int64_t h = 0; h < s.heads && variant.sink; ++h) sink.push_back(static_cast<float>(random() % 7) - 3);
    if (variant.sink) p.variant.sink = sink.data();
    p.lse = lse.data();
    p.grad_gates = grad_gates.data();
    if (with_bias) p.grad_bias = {grad_bias.data(), {s.heads * s.queries * s.keys, s.queries * s.keys, s.keys}};
    p.out_saved.data = out.data();
    for (int i = 0; i < 4; ++i) p.out_saved.stride[i] = p.out.stride[i];
  }

  void hide(std::mt19937& random) {
    const DType dtype = p.variant.bias_dtype;
    for (std::int64_t b = 0; b < shape.batch; ++b)
      for (std::int64_t h = 0; h < p.num_heads; ++h)
        for (std::int64_t t = 0; t < shape.queries; ++t)
          for (std::int64_t s = 0; s < shape.keys; ++s) {
            const std::int64_t* stride = p.variant.bias.stride;
            const std::int64_t at = b * stride[0] + h * stride[1] + t * stride[2] + s * stride[3];
            if (t % 5 == 1 || random() % 3 == 0) {
              put(&bias[at * size_of(dtype)], dtype, -std::numeric_limits<double>::infinity());
            }
          }
  }

  // Every element of an array, those between rows too: nobody may write there.
  std::vector<double> values(const Bytes& data) const {
    std::vector<double> result;
    for (std::size_t at = 0; at < data.size(); at += size_of(p.dtype)) result.push_back(get(&data[at], p.dtype));
    return result;
  }
};

// Within `tolerance` of the largest number; infinities must be equal.
void expect_close(const char* what, const std::vector<double>& got, const std::vector<double>& expected,
                  double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  double scale = 1, worst = 0;
  std::size_t worst_at = 0;
  for (const double value : expected) scale = std::isinf(value) ? scale : std::max(scale, std::fabs(value));
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = got[i] == expected[i] ? 0 : std::fabs(got[i] - expected[i]) / scale;
    if (error <= worst) continue;  // false for NaN
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
    worst_at = i;
  }
  ASSERT_LE(worst, tolerance) << what << "[" << worst_at << "] is " << got[worst_at] << ", expected "
                              << expected[worst_at] << "; errors are relative to " << scale;
}

std::vector<double> widen(const Floats& values) { return {values.begin(), values.end()}; }

class OnBackend : public BackendTest {};

Variant variant_of(unsigned seed) {
  const std::int64_t windows[] = {0, 1, 7, 150};
  return {.window = seed % 8 < 4 ? 0 : windows[seed / 8 % 4],
          .soft_cap = seed % 3 == 0 ? 1.5F : 0.0F,
          .sink = seed % 5 == 0};
}

TEST_P(OnBackend, ForwardAndBackwardEqualTheReference) {
  const struct {
    DType dtype;
    double tolerance;
  } dtypes[] = {{DType::kFloat32, 1e-5}, {DType::kBFloat16, 1.6e-2}, {DType::kFloat16, 2e-3}};
  unsigned seed = 0;
  for (const auto& [dtype, tolerance] : dtypes) {
    if (!takes(dtype)) continue;
    for (const Shape& shape : kShapes) {
      for (const Gates kind : {Gates::kSome, Gates::kNone, Gates::kOneHead, Gates::kAll}) {
        if (dtype != DType::kFloat32 && kind != Gates::kSome) continue;  // what gates do does not depend on the dtype
        for (const bool causal : {false, true}) {
          ++seed;  // every layout meets every bias
          if (skipped_by_stride(seed)) continue;
          const auto layout = static_cast<Layout>(seed % 4);
          const auto bias = static_cast<Bias>((seed + seed / 4) % 4);
          const int num_threads = seed % 3 == 0 ? 1 : seed % 3 == 1 ? 2 : 7;
          const Variant variant = variant_of(seed);
          SCOPED_TRACE(testing::Message()
                       << name_of(dtype) << " T=" << shape.queries << " S=" << shape.keys << " H=" << shape.heads << "/"
                       << shape.kv_heads << " D=" << shape.dim << " gates=" << static_cast<int>(kind)
                       << " causal=" << causal << " bias=" << static_cast<int>(bias)
                       << " layout=" << static_cast<int>(layout) << " threads=" << num_threads
                       << " window=" << variant.window << " soft_cap=" << variant.soft_cap << " sink=" << variant.sink);
          Case expected(shape, dtype, kind, causal, bias, layout, seed, variant);
          Case got(shape, dtype, kind, causal, bias, layout, seed, variant);
          got.p.parallel = threads(num_threads);
          if (!takes(got.p) || !takes(got.p, /*backward=*/true)) continue;
          reference::head_attention_forward(expected.p);
          forward(got.p);
          expect_close("out", got.values(got.out), expected.values(expected.out), tolerance);
          expect_close("lse", widen(got.lse), widen(expected.lse), 1e-5);
          reference::head_attention_backward(expected.p);
          backward(got.p);
          expect_close("grad_query", got.values(got.grad_query), expected.values(expected.grad_query), 4 * tolerance);
          expect_close("grad_key", got.values(got.grad_key), expected.values(expected.grad_key), 4 * tolerance);
          expect_close("grad_value", got.values(got.grad_value), expected.values(expected.grad_value), 4 * tolerance);
          expect_close("grad_gates", widen(got.grad_gates), widen(expected.grad_gates), 4e-5);
          expect_close("grad_bias", widen(got.grad_bias), widen(expected.grad_bias), 8 * tolerance);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// KV heads of many rows and of few. The output depends on nothing else; the gradients of keys depend on the number of
// threads, never on the run.
TEST_P(OnBackend, ResultsRepeatToTheBitWhateverThreadComesFirst) {
  for (const Shape& shape : {Shape{2, 150, 300, 4, 2, 32}, Shape{1, 2, 1500, 4, 2, 32}}) {
    Bytes out, gradients;
    for (int run = 0; run < 6; ++run) {
      Case c(shape, some_dtype(), Gates::kSome, true, Bias::kNone, Layout::kDense, 3);
      c.p.parallel = threads(run < 3 ? 7 : run - 2);
      forward(c.p);
      backward(c.p);
      Bytes all;
      for (const auto* part : {&c.grad_query, &c.grad_key, &c.grad_value})
        all.insert(all.end(), part->begin(), part->end());
      if (run == 0) {
        out = c.out;
        gradients = all;
      }
      EXPECT_EQ(c.out, out);
      if (run < 3) {
        EXPECT_EQ(all, gradients);
      }
    }
  }
}

TEST_P(OnBackend, NanReachesTheOutput) {
  for (const std::int64_t tokens : {3, 20}) {  // few rows, blocks of rows
    Case c({1, tokens, 20, 2, 2, 16}, some_dtype(), Gates::kAll, true, Bias::kNone, Layout::kDense, 1);
    Case::put(&c.query[0], c.p.dtype, std::nan(""));
    forward(c.p);
    EXPECT_TRUE(std::isnan(c.values(c.out)[0]));
  }
}

// Heads that no token selects are not computed, so numbers that would spoil everything do no harm.
TEST_P(OnBackend, SkippedHeadsAreNotRead) {
  for (const std::int64_t tokens : {1, 60}) {
    Case c({1, tokens, 60, 4, 4, 16}, some_dtype(), Gates::kOneHead, true, Bias::kNone, Layout::kTransposed, 1);
    const std::size_t unused = c.key.size() / 4 * 3;  // [B, H, S, D]: all heads but the last
    for (auto* data : {&c.key, &c.value}) std::fill(data->begin(), data->begin() + unused, 0xff);  // NaN
    forward(c.p);
    backward(c.p);
    for (const auto* data : {&c.out, &c.grad_query, &c.grad_key, &c.grad_value}) {
      const auto values = c.values(*data);
      EXPECT_TRUE(std::all_of(values.begin(), values.end() - values.size() / 4, [](double v) { return v == 0; }));
      EXPECT_TRUE(std::none_of(values.begin(), values.end(), [](double v) { return std::isnan(v); }));
    }
  }
}

// A call with sequences of many lengths, keys and values in pages of two layouts, beside a call for each of them with
// its keys and values side by side: the same to the bit, gradients too (where there are no pages).
TEST_P(OnBackend, SequencesDoNotDependOnEachOtherNorOnPages) {
  if (on_gpu()) GTEST_SKIP() << "there sequences are described in the GPU's memory: gpu_launch_test.py";
  struct Length {
    std::int64_t queries, keys;
  };
  const Length lengths[] = {{1, 300}, {130, 130}, {1, 1}, {40, 333}, {0, 5}, {3, 90}, {9, 4}, {100, 257}, {1, 600}};
  constexpr std::int64_t kHeads = 4, kKvHeads = 2, kDim = 24, kPage = 16;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    if (!takes(dtype)) continue;
    for (const Variant& variant : {Variant(), Variant{.window = 50}, Variant{.soft_cap = 2.0F, .sink = true}}) {
      for (const bool interleaved : {false, true}) {
        std::int64_t rows = 0, keys = 0, pages = 0;
        for (const Length& length : lengths) {
          rows += length.queries;
          keys += length.keys;
          pages += (length.keys + kPage - 1) / kPage;
        }
        // All keys of all sequences side by side, [keys, Hkv, D], and the same in pages.
        Case all({1, rows, keys, kHeads, kKvHeads, kDim}, dtype, Gates::kSome, true, Bias::kNone, Layout::kDense, 5,
                 variant);
        const std::int64_t size = size_of(dtype), row = kDim * size;
        Bytes key_pages(pages * kPage * kKvHeads * row * (interleaved ? 2 : 1), 0xff), value_pages = key_pages;
        std::vector<std::int32_t> table;
        for (std::int64_t i = 0; i < pages; ++i) table.push_back(static_cast<std::int32_t>((i * 7 + 3) % pages));
        ASSERT_NE(pages % 7, 0);  // a permutation
        // [P, page, Hkv, D], or keys and values in one pool [P, Hkv, page, 2 D].
        Input4 key_at = {key_pages.data(), {kPage * kKvHeads * kDim, kKvHeads * kDim, kDim, 1}}, value_at = key_at;
        value_at.data = value_pages.data();
        if (interleaved) {
          key_at = {key_pages.data(), {kKvHeads * kPage * 2 * kDim, 2 * kDim, kPage * 2 * kDim, 1}};
          value_at = key_at;
          value_at.data = key_pages.data() + row;
        }
        std::vector<Sequence> sequences, paged;
        std::int64_t first_row = 0, first_key = 0, first_page = 0;
        for (const Length& length : lengths) {
          sequences.push_back({0, first_row, length.queries, length.keys, first_key, nullptr});
          paged.push_back({0, first_row, length.queries, length.keys, 0, table.data() + first_page});
          for (std::int64_t s = 0; s < length.keys; ++s) {
            for (std::int64_t h = 0; h < kKvHeads; ++h) {
              const std::int64_t page = table[first_page + s / kPage];
              const std::int64_t to =
                  (page * key_at.stride[0] + s % kPage * key_at.stride[1] + h * key_at.stride[2]) * size;
              const std::int64_t from = ((first_key + s) * kKvHeads + h) * row;
              std::memcpy(key_pages.data() + to, &all.key[from], row);
              std::memcpy((interleaved ? key_pages.data() + row : value_pages.data()) + to, &all.value[from], row);
            }
          }
          first_row += length.queries;
          first_key += length.keys;
          first_page += (length.keys + kPage - 1) / kPage;
        }
        const auto run = [&](std::vector<Sequence>& which, bool in_pages, int num_threads) {
          HeadAttentionParams p = all.p;
          p.parallel = threads(num_threads);
          p.sequences = which.data();
          p.num_sequences = static_cast<std::int64_t>(which.size());
          if (in_pages) {
            p.page_size = kPage;
            p.key = key_at;
            p.value = value_at;
          }
          forward(p);
          if (!in_pages) backward(p);
        };
        const auto results = [&](bool gradients) {
          std::vector<Bytes> result = {all.out};
          result.emplace_back(reinterpret_cast<std::uint8_t*>(all.lse.data()),
                              reinterpret_cast<std::uint8_t*>(all.lse.data() + all.lse.size()));
          for (const auto* part : {&all.grad_query, &all.grad_key, &all.grad_value}) {
            if (gradients) result.push_back(*part);
          }
          return result;
        };
        for (Sequence& sequence : sequences) {
          std::vector<Sequence> one = {sequence};
          run(one, false, 2);
        }
        const auto alone = results(true), alone_forward = results(false);
        std::fill(all.out.begin(), all.out.end(), 0);
        std::fill(all.grad_key.begin(), all.grad_key.end(), 0);
        run(sequences, false, 2);
        EXPECT_EQ(results(true), alone);
        for (const int num_threads : {1, 7}) {
          std::fill(all.out.begin(), all.out.end(), 0);
          run(paged, true, num_threads);
          EXPECT_EQ(results(false), alone_forward);
        }
      }
    }
  }
}

std::vector<std::string> backend_names() {
  std::vector<std::string> names;
  for (const Backend& backend : backends()) {
    if (backend.attention_forward != reference::head_attention_forward) names.emplace_back(backend.name);
  }
  return names;
}
INSTANTIATE_TEST_SUITE_P(Table, OnBackend, testing::ValuesIn(backend_names()),
                         [](const auto& info) { return info.param; });

// d(sum out * grad_out) by central differences in float64 storage.
TEST(Reference, GradientsAreTheDifferencesOfTheForward) {
  const Shape shape{1, 4, 5, 4, 2, 3};
  for (const Variant& variant : {Variant(), Variant{.window = 2, .soft_cap = 1.5F, .sink = true}})
    for (const bool causal : {false, true}) {
      Case c(shape, DType::kFloat64, Gates::kSome, causal, Bias::kPlain, Layout::kDense, 4, variant);
      reference::head_attention_forward(c.p);
      reference::head_attention_backward(c.p);
      const auto grad = c.values(c.grad_out);
      const auto loss = [&] {
        reference::head_attention_forward(c.p);
        const auto out = c.values(c.out);
        return std::inner_product(out.begin(), out.end(), grad.begin(), 0.0);
      };
      const auto difference = [&](Bytes& input, std::size_t element) {
        const double old = Case::get(&input[element * 8], DType::kFloat64);
        Case::put(&input[element * 8], DType::kFloat64, old + 1e-5);
        const double above = loss();
        Case::put(&input[element * 8], DType::kFloat64, old - 1e-5);
        const double below = loss();
        Case::put(&input[element * 8], DType::kFloat64, old);
        return (above - below) / 2e-5;
      };
      const struct {
        Bytes *input, *gradient;
      } pairs[] = {{&c.query, &c.grad_query}, {&c.key, &c.grad_key}, {&c.value, &c.grad_value}};
      for (const auto& [input, gradient] : pairs) {
        const auto expected = c.values(*gradient);
        for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(difference(*input, i), expected[i], 1e-7);
      }
      // Stored in fp32, so to fewer digits.
      for (std::size_t i = 0; i < c.grad_bias.size(); ++i) EXPECT_NEAR(difference(c.bias, i), c.grad_bias[i], 1e-6);
      for (std::size_t i = 0; i < c.gates.size(); ++i) {
        if (c.gates[i] == 0) {
          EXPECT_EQ(c.grad_gates[i], 0);
          continue;
        }
        const float old = c.gates[i];
        const double before = loss();
        c.gates[i] = 2 * old + 1;  // the loss is linear in a gate
        EXPECT_NEAR((loss() - before) / (c.gates[i] - old), c.grad_gates[i], 1e-5);
        c.gates[i] = old;
      }
    }
}

TEST(Table, ChoosesByNameOrByReason) {
  const char* environment = std::getenv("MOH_BACKEND");
  const std::string outside = environment == nullptr ? "" : environment;
  unsetenv("MOH_BACKEND");
  CallTraits call;
  std::string reason;
  call.dtype = DType::kFloat64;
  EXPECT_EQ(choose_backend(call, &reason), nullptr);
  EXPECT_NE(reason.find("fp64"), std::string::npos);
  EXPECT_THROW(choose_backend(call, nullptr, "portable"), moh::Error);
  call.dtype = DType::kFloat32;
  EXPECT_STREQ(choose_backend(call, nullptr, "portable")->name, "portable");
  EXPECT_EQ(choose_backend(call, &reason, "composite"), nullptr);
  force_backend("reference");
  EXPECT_STREQ(choose_backend({.backward = true}, nullptr)->name, "reference");
  force_backend("");
  EXPECT_TRUE(choose_backend({.backward = true}, nullptr)->automatic());
  try {
    force_backend("neon9");
    FAIL() << "an unknown name was taken";
  } catch (const moh::Error& error) {
    for (const char* known : {"neon9", "auto", "composite", "portable", "reference"}) {
      EXPECT_NE(std::string(error.what()).find(known), std::string::npos) << error.what();
    }
  }
  // Tensors on a GPU: nothing runs by itself, and a row without the kernel says so.
  call.on_cpu = false;
  EXPECT_EQ(choose_backend(call, &reason), nullptr);
  EXPECT_FALSE(reason.empty());
  EXPECT_THROW(choose_backend(call, nullptr, "portable"), moh::Error);
  call.kernel = Kernel::kAggregated;
  EXPECT_THROW(choose_backend(call, nullptr, "triton"), moh::Error);
  call = CallTraits();
  EXPECT_THROW(choose_backend(call, nullptr, "triton"), moh::Error);  // CPU memory
  setenv("MOH_BACKEND", "portable", 1);
  EXPECT_STREQ(choose_backend(call, nullptr)->name, "portable");
  EXPECT_STREQ(choose_backend(call, nullptr, "reference")->name, "reference");
  setenv("MOH_BACKEND", "neon9", 1);
  EXPECT_THROW(choose_backend(call, nullptr), moh::Error);
  outside.empty() ? unsetenv("MOH_BACKEND") : setenv("MOH_BACKEND", outside.c_str(), 1);
}

}  // namespace
