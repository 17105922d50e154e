// moh::head_attention against LibTorch's own attention, gradcheck-like differences in float64, and its facts.
#include "moh/ops/head_attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "moh/kernels/backend.h"
#include "tests/ops/test_device.h"

namespace {

using at::Tensor;
using moh::ops::head_attention;
using moh::ops::head_attention_composite;

struct Shape {
  std::int64_t batch, tokens, keys, heads, kv_heads, dim;
};

Tensor random(at::IntArrayRef shape, at::ScalarType type = at::kDouble) { return at::randn(shape, on_device(type)); }

struct Inputs {
  Tensor query, key, value, gates, bias;
};

Inputs make_inputs(const Shape& s, at::ScalarType type, double active = 0.6) {
  Inputs in;
  in.query = random({s.batch, s.tokens, s.heads, s.dim}, type);
  in.key = random({s.batch, s.keys, s.kv_heads, s.dim}, type);
  in.value = random({s.batch, s.keys, s.kv_heads, s.dim}, type);
  const auto gate_type = type == at::kDouble ? at::kDouble : at::kFloat;
  in.gates = random({s.batch, s.tokens, s.heads}, gate_type) *
             at::rand({s.batch, s.tokens, s.heads}, on_device(gate_type)).lt(active).to(gate_type);
  in.bias = random({s.heads, s.tokens, s.keys}, type);
  return in;
}

// The formula once more, by LibTorch's scaled_dot_product_attention in float64.
Tensor oracle(const Inputs& in, bool with_bias, bool causal, std::optional<double> scale) {
  const std::int64_t groups = in.query.size(2) / in.key.size(2), tokens = in.query.size(1), keys = in.key.size(1);
  const auto wide = [&](const Tensor& kv) { return kv.to(at::kDouble).repeat_interleave(groups, 2).transpose(1, 2); };
  Tensor mask = at::zeros({in.query.size(0), in.query.size(2), tokens, keys}, on_device(at::kDouble));
  if (with_bias) mask = mask + in.bias.to(at::kDouble);
  if (causal) {
    mask = mask.masked_fill(at::ones({tokens, keys}, on_device(at::kBool)).tril(keys - tokens).logical_not(),
                            -std::numeric_limits<double>::infinity());
  }
  Tensor out = at::scaled_dot_product_attention(in.query.to(at::kDouble).transpose(1, 2), wide(in.key), wide(in.value),
                                                mask, 0.0, false, scale)
                   .transpose(1, 2);
  const Tensor sees_none = mask.eq(-std::numeric_limits<double>::infinity()).all(-1).transpose(1, 2).unsqueeze(-1);
  return (out * in.gates.to(at::kDouble).unsqueeze(-1)).masked_fill(sees_none, 0);
}

const Shape kShapes[] = {{1, 1, 1, 1, 1, 1},   {2, 5, 5, 4, 2, 8},    {1, 33, 33, 6, 3, 24},  {2, 7, 19, 8, 1, 16},
                         {1, 19, 7, 4, 4, 64}, {1, 70, 70, 2, 2, 96}, {1, 130, 130, 3, 1, 72}};

class OnBackend : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const auto& backend : moh::kernels::backends()) {
      if (backend.name == GetParam() && !backend.unavailable_reason().empty())
        GTEST_SKIP() << backend.unavailable_reason();
    }
    moh::kernels::force_backend(GetParam());
    at::manual_seed(1);
  }
  void TearDown() override { moh::kernels::force_backend(""); }

  // Kernels for GPUs are built for some calls alone (docs/cuda.md); gpu_launch_test.py has what the others get.
  static bool built(at::ScalarType type, std::int64_t dim, bool bias, bool soft_cap = false) {
    if (GetParam() != "triton") return true;
    const bool aligned = dim * static_cast<std::int64_t>(at::elementSize(type)) % 16 == 0;
    return aligned && !(bias && soft_cap) && !(type == at::kHalf && (bias || soft_cap));
  }
};

TEST_P(OnBackend, ForwardMatchesSdpaInFloat64) {
  const struct {
    at::ScalarType type;
    double tolerance;
  } types[] = {{at::kFloat, 2e-5}, {at::kBFloat16, 3e-2}, {at::kHalf, 4e-3}};
  for (const auto& [type, tolerance] : types) {
    for (const Shape& shape : kShapes) {
      for (const bool causal : {false, true}) {
        for (const bool with_bias : {false, true}) {
          if (!built(type, shape.dim, with_bias)) continue;
          const Inputs in = make_inputs(shape, type);
          const auto bias = with_bias ? std::optional<Tensor>(in.bias) : std::nullopt;
          const Tensor out = head_attention(in.query, in.key, in.value, in.gates, bias, causal, 0.3);
          const Tensor expected = oracle(in, with_bias, causal, 0.3);
          ASSERT_EQ(out.scalar_type(), type);
          const double error = (out.to(at::kDouble) - expected).abs().max().item<double>();
          EXPECT_LE(error, tolerance * std::max(1.0, expected.abs().max().item<double>()))
              << at::toString(type) << " T=" << shape.tokens << " S=" << shape.keys << " D=" << shape.dim
              << " causal=" << causal << " bias=" << with_bias;
          EXPECT_TRUE(out.masked_select(in.gates.eq(0).unsqueeze(-1).expand_as(out)).eq(0).all().item<bool>());
        }
      }
    }
  }
}

TEST_P(OnBackend, GradientsMatchAutogradOfTheCompositeInFloat64) {
  for (const Shape& shape : kShapes) {
    if (!built(at::kFloat, shape.dim, true)) continue;
    for (const bool causal : {false, true}) {
      Inputs in = make_inputs(shape, at::kFloat);
      const Tensor weights = random({shape.batch, shape.tokens, shape.heads, shape.dim}, at::kFloat);
      std::vector<Tensor*> leaves = {&in.query, &in.key, &in.value, &in.gates, &in.bias};
      std::vector<Tensor> wide;
      for (Tensor* leaf : leaves) {
        leaf->set_requires_grad(true);
        wide.push_back(leaf->detach().to(at::kDouble).set_requires_grad(true));
      }
      (head_attention(in.query, in.key, in.value, in.gates, in.bias, causal) * weights).sum().backward();
      (head_attention_composite(wide[0], wide[1], wide[2], wide[3], wide[4], causal) * weights).sum().backward();
      const char* names[] = {"query", "key", "value", "gates", "bias"};
      for (std::size_t i = 0; i < leaves.size(); ++i) {
        Tensor expected = wide[i].grad();
        if (i == 3) expected = expected.masked_fill(in.gates.eq(0), 0);  // documented: zero where skipped
        const double error = (leaves[i]->grad().to(at::kDouble) - expected).abs().max().item<double>();
        EXPECT_LE(error, 5e-5 * std::max(1.0, expected.abs().max().item<double>()))
            << names[i] << " T=" << shape.tokens << " S=" << shape.keys << " D=" << shape.dim << " causal=" << causal;
      }
    }
  }
}

// The same computation by LibTorch operations in the inputs' own dtype: what a plain half-precision model does.
Tensor same_dtype_composite(const Inputs& in, const Tensor& gates, bool causal) {
  const std::int64_t groups = in.query.size(2) / in.key.size(2), tokens = in.query.size(1), keys = in.key.size(1);
  const auto wide = [&](const Tensor& kv) { return kv.repeat_interleave(groups, 2).transpose(1, 2); };
  Tensor scores = at::matmul(in.query.transpose(1, 2), wide(in.key).transpose(2, 3)) / std::sqrt(in.query.size(3));
  if (causal) {
    scores = scores.masked_fill(at::ones({tokens, keys}, on_device(at::kBool)).tril(keys - tokens).logical_not(),
                                -std::numeric_limits<double>::infinity());
  }
  return at::matmul(at::softmax(scores, -1), wide(in.value)).transpose(1, 2) *
         gates.to(scores.scalar_type()).unsqueeze(-1);
}

// Torch's own fused attention in the inputs' dtype.
Tensor torch_attention(const Inputs& in, const Tensor& gates, bool causal) {
  const auto heads_first = [](const Tensor& tensor) { return tensor.transpose(1, 2); };
  const std::int64_t groups = in.query.size(2) / in.key.size(2);
  const auto wide = [&](const Tensor& kv) { return heads_first(kv.repeat_interleave(groups, 2)); };
  const Tensor out =
      at::scaled_dot_product_attention(heads_first(in.query), wide(in.key), wide(in.value), {}, 0.0, causal);
  return heads_first(out) * gates.to(out.scalar_type()).unsqueeze(-1);
}

class HalfTypesOnBackend : public OnBackend {
 protected:
  static bool takes(at::ScalarType type) {
    for (const auto& backend : moh::kernels::backends()) {
      moh::kernels::CallTraits call;
      call.dtype = type == at::kHalf ? moh::kernels::DType::kFloat16 : moh::kernels::DType::kBFloat16;
      call.on_cpu = test_device().is_cpu();
      if (backend.name == GetParam()) return backend.unsupported_reason(call).empty();
    }
    return true;
  }
};

// FlashAttention's rule: beside float64, at most twice the error of the composite in the same dtype, and of torch's own
// attention.
TEST_P(HalfTypesOnBackend, AreAtMostTwiceAsFarFromFloat64AsTorchsInTheSameType) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    if (!takes(type)) continue;
    for (const Shape& shape : {Shape{2, 70, 70, 4, 2, 64}, Shape{1, 150, 200, 3, 1, 72}, Shape{1, 1, 300, 4, 2, 128}}) {
      for (const bool causal : {false, true}) {
        const Inputs in = make_inputs(shape, type);
        const Tensor weights = random({shape.batch, shape.tokens, shape.heads, shape.dim}, type);
        // 0: float64, 1: fused, 2: composite in `type`, 3: torch's attention in `type`, whose causal mask differs where
        // there are more keys than queries; out and the gradients of query, key and value.
        const int ways = causal && shape.tokens != shape.keys ? 3 : 4;
        std::vector<Tensor> results[4];
        for (int way = 0; way < ways; ++way) {
          const auto dtype = way == 0 ? at::kDouble : type;
          Inputs copy = in;
          for (Tensor* leaf : {&copy.query, &copy.key, &copy.value}) {
            *leaf = leaf->detach().to(dtype, false, true).set_requires_grad(true);
          }
          const Tensor out =
              way == 1   ? head_attention(copy.query, copy.key, copy.value, in.gates, std::nullopt, causal)
              : way == 0 ? head_attention_composite(copy.query, copy.key, copy.value, in.gates, std::nullopt, causal)
              : way == 2 ? same_dtype_composite(copy, in.gates, causal)
                         : torch_attention(copy, in.gates, causal);
          out.backward(weights.to(dtype));
          results[way] = {out.detach(), copy.query.grad(), copy.key.grad(), copy.value.grad()};
        }
        const char* names[] = {"out", "grad query", "grad key", "grad value"};
        for (std::size_t i = 0; i < 4; ++i) {
          const auto error = [&](int way) {
            return (results[way][i].to(at::kDouble) - results[0][i]).abs().max().item<double>();
          };
          for (int way = 2; way < ways; ++way) {
            EXPECT_LE(error(1), 2 * error(way) + 1e-6)
                << names[i] << " " << at::toString(type) << " T=" << shape.tokens << " causal=" << causal
                << (way == 2 ? " beside the composite" : " beside torch's attention");
          }
        }
      }
    }
  }
}

TEST_P(OnBackend, HiddenKeysOfTheBiasAreHidden) {
  const Shape shape{2, 9, 9, 4, 2, 16};
  Inputs in = make_inputs(shape, at::kFloat, 1.0);
  Tensor bias = at::zeros({2, 1, 1, 9}, on_device());
  bias.slice(3, 0, 4)[1].fill_(-std::numeric_limits<float>::infinity());  // the second sequence is padded on the left
  const Tensor out = head_attention(in.query, in.key, in.value, in.gates, bias, true);
  EXPECT_TRUE(at::isfinite(out).all().item<bool>());
  EXPECT_TRUE(out[1].narrow(0, 0, 4).eq(0).all().item<bool>());
  in.bias = bias.expand({2, 4, 9, 9});
  EXPECT_LE((out.to(at::kDouble) - oracle(in, true, true, std::nullopt)).abs().max().item<double>(), 2e-5);
}

TEST_P(OnBackend, AnyStrideGivesTheSame) {
  const Inputs in = make_inputs({2, 17, 17, 6, 2, 24}, at::kFloat);
  const auto transposed = [](const Tensor& t) { return t.permute({3, 2, 0, 1}).contiguous().permute({2, 3, 1, 0}); };
  const Tensor expected = head_attention(in.query, in.key, in.value, in.gates, {}, true);
  const Tensor out = head_attention(transposed(in.query), transposed(in.key), transposed(in.value),
                                    in.gates.transpose(1, 2).contiguous().transpose(1, 2), {}, true);
  EXPECT_LE((out - expected).abs().max().item<double>(), 2e-6);
}

TEST_P(OnBackend, AllHeadsOnEqualsDenseAttention) {
  const Shape shape{1, 200, 200, 8, 8, 64};
  Inputs in = make_inputs(shape, at::kFloat);
  const Tensor ones = at::ones_like(in.gates);
  const Tensor out = head_attention(in.query, in.key, in.value, ones, {}, true);
  const Tensor dense = at::scaled_dot_product_attention(in.query.transpose(1, 2), in.key.transpose(1, 2),
                                                        in.value.transpose(1, 2), {}, 0.0, true)
                           .transpose(1, 2);
  // A few ulp of the largest value: both are float32 sums in different orders.
  EXPECT_LE((out - dense).abs().max().item<double>(), 8 * 1.2e-7 * dense.abs().max().item<double>());
}

TEST_P(OnBackend, HeadsThatNobodySelectsGetNoGradient) {
  Inputs in = make_inputs({1, 11, 11, 4, 4, 16}, at::kFloat, 1.0);
  in.gates.select(2, 2).zero_();
  for (Tensor* leaf : {&in.query, &in.key, &in.value, &in.gates}) leaf->set_requires_grad(true);
  head_attention(in.query, in.key, in.value, in.gates, {}, true).square().sum().backward();
  for (const Tensor& leaf : {in.query, in.key, in.value}) {
    EXPECT_TRUE(leaf.grad().select(2, 2).eq(0).all().item<bool>());
    EXPECT_FALSE(leaf.grad().select(2, 1).eq(0).all().item<bool>());
  }
  EXPECT_TRUE(in.gates.grad().select(2, 2).eq(0).all().item<bool>());
}

TEST_P(OnBackend, RepeatsToTheBitWithTwoThreads) {
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  Inputs in = make_inputs({2, 150, 150, 4, 2, 32}, at::kFloat);
  std::vector<Tensor> first;
  for (int run = 0; run < 3; ++run) {
    std::vector<Tensor> results;
    for (Tensor* leaf : {&in.query, &in.key, &in.value, &in.gates}) {
      leaf->set_requires_grad(true);
      leaf->mutable_grad() = Tensor();
    }
    const Tensor out = head_attention(in.query, in.key, in.value, in.gates, {}, true);
    out.square().sum().backward();
    results = {out.detach(), in.query.grad(), in.key.grad(), in.value.grad(), in.gates.grad()};
    if (run == 0) first = results;
    for (std::size_t i = 0; i < results.size(); ++i) EXPECT_TRUE(at::equal(results[i], first[i])) << i;
  }
  at::set_num_threads(threads);
}

// A window, a soft cap and sinks by plain operations in float64.
Tensor variant_oracle(const Inputs& in, std::int64_t window, double soft_cap, const Tensor& sink) {
  const std::int64_t groups = in.query.size(2) / in.key.size(2), tokens = in.query.size(1), keys = in.key.size(1);
  const auto wide = [&](const Tensor& kv) { return kv.to(at::kDouble).repeat_interleave(groups, 2).transpose(1, 2); };
  Tensor scores = at::matmul(in.query.to(at::kDouble).transpose(1, 2), wide(in.key).transpose(2, 3)) * 0.3;
  if (soft_cap > 0) scores = soft_cap * at::tanh(scores / soft_cap);
  scores = scores + in.bias.to(at::kDouble);
  const Tensor place = at::arange(tokens, on_device(at::kLong)).unsqueeze(1) + (keys - tokens);
  const Tensor key = at::arange(keys, on_device(at::kLong)).unsqueeze(0);
  Tensor seen = key.le(place);
  if (window > 0) seen = seen.logical_and(key.gt(place - window));
  Tensor weight = at::exp(scores) * seen.to(at::kDouble);
  Tensor sum = weight.sum(-1, /*keepdim=*/true);
  if (sink.defined()) sum = sum + at::exp(sink.to(at::kDouble)).reshape({1, -1, 1, 1});
  weight = weight / sum.masked_fill(sum.eq(0), 1);
  return at::matmul(weight, wide(in.value)).transpose(1, 2) * in.gates.to(at::kDouble).unsqueeze(-1);
}

TEST_P(OnBackend, WindowsSoftCapsAndSinksMatchPlainOperationsInFloat64) {
  for (const Shape& shape : kShapes) {
    for (const std::int64_t window : {0, 1, 5, 100}) {
      for (const double soft_cap : {0.0, 1.5}) {
        if (!built(at::kFloat, shape.dim, true, soft_cap > 0)) continue;
        Inputs in = make_inputs(shape, at::kFloat), wide = in;
        Tensor sink = random({shape.heads}, at::kFloat), wide_sink = sink.to(at::kDouble);
        const bool with_sink = window != 5;
        const Tensor weights = random({shape.batch, shape.tokens, shape.heads, shape.dim}, at::kFloat);
        std::vector<Tensor*> ours = {&in.query, &in.key, &in.value, &in.gates, &in.bias, &sink};
        std::vector<Tensor*> theirs = {&wide.query, &wide.key, &wide.value, &wide.gates, &wide.bias, &wide_sink};
        for (std::size_t i = 0; i < ours.size(); ++i) {
          *theirs[i] = ours[i]->detach().to(at::kDouble).set_requires_grad(true);
          ours[i]->set_requires_grad(true);
        }
        const moh::ops::Selection selection = moh::ops::select_heads(in.gates);
        moh::ops::AttentionVariant variant = {.causal = true, .window = window, .soft_cap = soft_cap, .bias = in.bias};
        variant.scale = 0.3;
        if (with_sink) variant.sink = sink;
        const Tensor out = head_attention(in.query, in.key, in.value, selection, variant);
        const Tensor expected = variant_oracle(wide, window, soft_cap, with_sink ? wide_sink : Tensor());
        (out * weights).sum().backward();
        (expected * weights).sum().backward();
        SCOPED_TRACE(testing::Message() << "T=" << shape.tokens << " S=" << shape.keys << " window=" << window
                                        << " soft_cap=" << soft_cap);
        const auto expect_near = [](const Tensor& got, const Tensor& wanted, const char* what) {
          const double size = std::max(1.0, wanted.abs().max().item<double>());
          EXPECT_LE((got.to(at::kDouble) - wanted).abs().max().item<double>(), 5e-5 * size) << what;
        };
        expect_near(out.detach(), expected.detach(), "out");
        const char* names[] = {"query", "key", "value", "gates", "bias", "sink"};
        for (std::size_t i = 0; i < (with_sink ? 6 : 5); ++i) {
          Tensor wanted = theirs[i]->grad();
          if (i == 3) wanted = wanted.masked_fill(in.gates.eq(0), 0);  // documented: zero where skipped
          expect_near(ours[i]->grad(), wanted, names[i]);
        }
      }
    }
  }
}

// Prompts beside decoding sequences, in a pool whose pages hold keys and values side by side.
TEST_P(OnBackend, SequencesInPagesEqualCallsForEachOfThem) {
  if (test_device().is_cuda()) GTEST_SKIP() << "gpu_launch_test.py has them";  // there nothing looks into the lists
  constexpr std::int64_t kHeads = 4, kKvHeads = 2, kDim = 16, kPage = 8;
  const std::vector<std::pair<std::int64_t, std::int64_t>> lengths = {{1, 70}, {30, 30}, {1, 1}, {20, 45}, {1, 300}};
  std::int64_t rows = 0, pages = 0, most = 0;
  for (const auto& [queries, keys] : lengths) {
    rows += queries;
    pages += (keys + kPage - 1) / kPage;
    most = std::max(most, (keys + kPage - 1) / kPage);
  }
  const Tensor pool = random({pages, kKvHeads, kPage, 2 * kDim}, at::kFloat);
  const Tensor key = pool.narrow(3, 0, kDim).transpose(1, 2), value = pool.narrow(3, kDim, kDim).transpose(1, 2);
  const Tensor query = random({rows, kHeads, kDim}, at::kFloat);
  const Tensor gates = at::rand({rows, kHeads}, on_device()) * at::rand({rows, kHeads}, on_device()).lt(0.6);
  const Tensor order = at::randperm(pages, on_device(at::kLong)).to(at::kInt);
  const Tensor table = at::zeros({5, most}, on_device(at::kInt)), list = at::empty({5, 3}, on_device(at::kLong));
  std::int64_t first = 0, page = 0;
  std::vector<Tensor> alone;
  for (std::int64_t n = 0; n < 5; ++n) {
    const auto [queries, keys] = lengths[n];
    const std::int64_t used = (keys + kPage - 1) / kPage;
    table[n].narrow(0, 0, used).copy_(order.narrow(0, page, used));
    list[n].copy_(at::tensor({first, queries, keys}, on_device(at::kLong)));
    const auto gathered = [&, keys = keys](const Tensor& of) {
      return of.index_select(0, table[n].narrow(0, 0, used)).flatten(0, 1).narrow(0, 0, keys).unsqueeze(0);
    };
    alone.push_back(head_attention(query.narrow(0, first, queries).unsqueeze(0), gathered(key), gathered(value),
                                   gates.narrow(0, first, queries).unsqueeze(0), {}, true)
                        .squeeze(0));
    first += queries;
    page += used;
  }
  const Tensor out =
      moh::ops::head_attention_paged(query, key, value, moh::ops::select_heads(gates), list, table, {.causal = true});
  EXPECT_TRUE(at::equal(out, at::cat(alone)));
  list[1][2] = 1000;
  EXPECT_THROW(moh::ops::head_attention_paged(query, key, value, moh::ops::select_heads(gates), list, table, {}),
               std::exception);
}

TEST_P(OnBackend, ABoolMaskHidesAndABiasKeepsItsType) {
  const Inputs in = make_inputs({2, 9, 12, 4, 2, 16}, at::kFloat);
  const Tensor mask = at::rand({2, 1, 9, 12}, on_device()).lt(0.7);
  Inputs masked = in;
  masked.bias = at::zeros({2, 4, 9, 12}, on_device()).masked_fill(mask.logical_not(), -INFINITY);
  const Tensor out = head_attention(in.query, in.key, in.value, in.gates, mask, true);
  EXPECT_LE((out.to(at::kDouble) - oracle(masked, true, true, std::nullopt)).abs().max().item<double>(), 2e-5);
  EXPECT_THROW(head_attention(in.query, in.key, in.value, in.gates, mask.to(at::kInt), true), std::exception);
  // An fp32 bias beside bf16 rows is not rounded to bf16: 1000 + 1/4 and 1000 + 3/4 differ in fp32 alone.
  Inputs half = make_inputs({1, 1, 2, 1, 1, 8}, at::kBFloat16, 1.0);
  half.bias = at::tensor({1000.25, 1000.75}, on_device());
  const Tensor rounded = head_attention(half.query, half.key, half.value, half.gates, half.bias);
  const double size = oracle(half, true, false, std::nullopt).abs().max().item<double>();
  EXPECT_LE((rounded.to(at::kDouble) - oracle(half, true, false, std::nullopt)).abs().max().item<double>(),
            1e-2 * std::max(size, 0.1));
}

// fp16 holds hardly a digit of an output whose gate is 1e-6; the gate's gradient does not depend on it.
TEST_P(OnBackend, GradientsOfSmallGatesAreExactInHalfTypes) {
  Inputs in = make_inputs({1, 6, 6, 2, 2, 16}, at::kHalf, 1.0);
  in.gates = at::full({1, 6, 2}, 1e-6, on_device()).set_requires_grad(true);
  const Tensor grad = random({1, 6, 2, 16}, at::kHalf);
  head_attention(in.query, in.key, in.value, in.gates).backward(grad);
  Inputs wide = in;
  wide.gates = at::ones({1, 6, 2}, on_device());
  const Tensor expected = (oracle(wide, false, false, std::nullopt) * grad.to(at::kDouble)).sum(-1);
  EXPECT_LE((in.gates.grad().to(at::kDouble) - expected).abs().max().item<double>(), 1e-3);
}

std::vector<std::string> backend_names(bool with_fp32) {
  std::vector<std::string> names = {"composite"};
  for (const auto& backend : moh::kernels::backends()) {
    moh::kernels::CallTraits call;
    call.on_cpu = test_device().is_cpu();
    if (with_fp32 && !backend.unsupported_reason(call).empty()) continue;
    if ((backend.name == std::string("triton")) == test_device().is_cuda()) names.emplace_back(backend.name);
  }
  return names;
}
INSTANTIATE_TEST_SUITE_P(Backends, OnBackend, testing::ValuesIn(backend_names(true)),
                         [](const auto& info) { return info.param; });
INSTANTIATE_TEST_SUITE_P(Backends, HalfTypesOnBackend, testing::ValuesIn(backend_names(false)),
                         [](const auto& info) { return info.param; });

TEST(HeadAttention, CompositeGradientsMatchFiniteDifferencesInFloat64) {
  at::manual_seed(3);
  Inputs in = make_inputs({1, 4, 6, 4, 2, 3}, at::kDouble);
  const Tensor weights = random({1, 4, 4, 3});
  for (Tensor* leaf : {&in.query, &in.key, &in.value, &in.gates, &in.bias}) leaf->set_requires_grad(true);
  const auto loss = [&] {
    return (head_attention(in.query, in.key, in.value, in.gates, in.bias, true) * weights).sum();
  };
  loss().backward();
  const c10::NoGradGuard no_grad;
  constexpr double kStep = 1e-6;
  for (Tensor* leaf : {&in.query, &in.key, &in.value, &in.gates, &in.bias}) {
    const Tensor values = leaf->detach().view(-1), grad = leaf->grad().reshape(-1);
    for (std::int64_t i = 0; i < leaf->numel(); ++i) {
      Tensor element = values[i];
      const double old = element.item<double>();
      if (leaf == &in.gates && old == 0) continue;  // a skipped head's gate: documented zero
      element.fill_(old + kStep);
      const double above = loss().item<double>();
      element.fill_(old - kStep);
      const double below = loss().item<double>();
      element.fill_(old);
      EXPECT_NEAR(grad[i].item<double>(), (above - below) / (2 * kStep), 1e-6);
    }
  }
}

TEST(HeadAttention, SaysWhatIsWrong) {
  const Inputs in = make_inputs({1, 4, 4, 4, 2, 8}, at::kFloat);
  const auto message = [&](const Tensor& query, const Tensor& gates) -> std::string {
    try {
      head_attention(query, in.key, in.value, gates);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message(in.query.flatten(2), in.gates).find("query must be [B, T, H, D]"), std::string::npos);
  EXPECT_NE(message(in.query.narrow(2, 0, 3), in.gates).find("multiple"), std::string::npos);
  EXPECT_NE(message(in.query, in.gates.narrow(1, 0, 2)).find("gates must be"), std::string::npos);
  EXPECT_NE(message(in.query.to(at::kHalf), in.gates).find("one floating dtype"), std::string::npos);
}

TEST(HeadAttention, ForcedBackendThatCannotRunIsAnError) {
  EXPECT_THROW(moh::kernels::force_backend("sse9"), std::exception);
  moh::kernels::force_backend("portable");
  const Inputs in = make_inputs({1, 4, 4, 4, 2, 8}, at::kDouble);
  EXPECT_THROW(head_attention(in.query, in.key, in.value, in.gates), std::exception);  // fp64
  moh::kernels::force_backend("");
  EXPECT_NO_THROW(head_attention(in.query, in.key, in.value, in.gates));
}

}  // namespace
