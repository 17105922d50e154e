// moh bench attention: the operator alone against fused dense attention of the same shape (torch_sdpa) or against what
// the authors' code does, every head computed and multiplied by its gate (authors_form).
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "bench/bench.h"
#include "moh/base/error.h"
#include "moh/kernels/backend.h"
#include "moh/ops/autocast.h"
#include "moh/ops/head_attention.h"

namespace moh::bench {
namespace {

using at::Tensor;

struct Case {
  std::int64_t batch, tokens, heads, kv_heads, head_dim;
  double activated;
  bool causal;
  at::ScalarType dtype;
  std::string direction, rival;
};

struct Inputs {
  Tensor query, key, value, gates;             // moh: [B, T, H, D]
  Tensor rival_query, rival_key, rival_value;  // the rival's best layout: [B, H, T, D], contiguous
  Tensor grad, rival_grad;
  double activated;  // measured
};

Inputs make_inputs(const Case& c, std::uint64_t seed) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto random = [&](std::int64_t tokens, std::int64_t heads) {
    return at::empty({c.batch, tokens, heads, c.head_dim}, at::TensorOptions(at::kFloat))
        .normal_(0, 1, generator)
        .to(c.dtype);
  };
  Inputs in;
  in.query = random(c.tokens, c.heads);
  in.key = random(c.tokens, c.kv_heads);
  in.value = random(c.tokens, c.kv_heads);
  in.grad = random(c.tokens, c.heads);
  // Every token uses `active` heads, chosen at random.
  const auto active = std::max<std::int64_t>(1, std::llround(c.activated * static_cast<double>(c.heads)));
  const Tensor scores =
      at::empty({c.batch, c.tokens, c.heads}, at::TensorOptions(at::kFloat)).uniform_(0, 1, generator);
  in.gates = at::zeros(scores.sizes(), scores.options()).scatter(-1, std::get<1>(scores.topk(active, -1)), 1.0);
  in.activated = in.gates.mean().item<double>();
  const auto rival_layout = [](const Tensor& tensor) { return tensor.transpose(1, 2).contiguous(); };
  in.rival_query = rival_layout(in.query);
  in.rival_key = rival_layout(in.key);
  in.rival_value = rival_layout(in.value);
  in.rival_grad = rival_layout(in.grad);
  return in;
}

// Largest error of a few heads against the composite form in float64.
double max_error(const Case& c, const Inputs& in) {
  const c10::NoGradGuard no_grad;
  const Tensor out = ops::head_attention(in.query, in.key, in.value, in.gates, std::nullopt, c.causal);
  double worst = 0;
  for (const std::int64_t head : {std::int64_t{0}, c.heads / 2, c.heads - 1}) {
    const std::int64_t kv_head = head / (c.heads / c.kv_heads);
    const auto one = [](const Tensor& tensor, std::int64_t index) {
      return tensor.narrow(2, index, 1).to(at::kDouble);
    };
    const Tensor expected =
        ops::head_attention_composite(one(in.query, head), one(in.key, kv_head), one(in.value, kv_head),
                                      one(in.gates.unsqueeze(-1), head).squeeze(-1), std::nullopt, c.causal);
    worst = std::max(worst, (one(out, head) - expected).abs().max().item<double>());
  }
  const double tolerance = c.dtype == at::kFloat ? 1e-4 : c.dtype == at::kHalf ? 1e-2 : 5e-2;
  MOH_CHECK(worst <= tolerance, "[bench] the result is wrong by ", worst, ", allowed is ", tolerance);
  return worst;
}

Json run_case(const Case& c, const Grid& grid) {
  Inputs in = make_inputs(c, grid.seed);
  const double error = max_error(c, in);
  const bool backward = c.direction != "forward";
  for (Tensor* tensor : {&in.query, &in.key, &in.value, &in.gates, &in.rival_query, &in.rival_key, &in.rival_value}) {
    tensor->set_requires_grad(backward);
  }
  const auto clear = [](std::initializer_list<Tensor*> tensors) {
    for (Tensor* tensor : tensors) tensor->mutable_grad() = Tensor();
  };
  const auto moh = [&] {
    const Tensor out = ops::head_attention(in.query, in.key, in.value, in.gates, std::nullopt, c.causal);
    if (!backward) return;
    out.backward(in.grad);
    clear({&in.query, &in.key, &in.value, &in.gates});
  };
  const bool authors = c.rival == "authors_form";
  const auto rival = [&] {
    Tensor out = at::scaled_dot_product_attention(in.rival_query, in.rival_key, in.rival_value, {}, 0.0, c.causal, {},
                                                  /*enable_gqa=*/c.heads != c.kv_heads);
    if (authors) out = out * in.gates.transpose(1, 2).unsqueeze(-1).to(c.dtype);
    if (!backward) return;
    out.backward(in.rival_grad);
    clear({&in.rival_query, &in.rival_key, &in.rival_value, &in.gates});
  };
  Timing timing;
  {
    const c10::AutoGradMode mode(backward);
    timing = time_pair(moh, rival, grid.seconds);
  }
  const kernels::DType dtype = c.dtype == at::kFloat      ? kernels::DType::kFloat32
                               : c.dtype == at::kBFloat16 ? kernels::DType::kBFloat16
                                                          : kernels::DType::kFloat16;
  const auto* backend =
      kernels::choose_backend({.dtype = dtype, .head_dim = c.head_dim, .backward = backward}, nullptr);
  Json row = Json::object();
  row["subject"] = "attention";
  row["direction"] = c.direction;
  row["dtype"] = kernels::name_of(dtype);
  row["batch"] = c.batch;
  row["heads"] = c.heads;
  row["kv_heads"] = c.kv_heads;
  row["head_dim"] = c.head_dim;
  row["tokens"] = c.tokens;
  row["causal"] = c.causal;
  row["activated"] = in.activated;
  row["threads"] = at::get_num_threads();
  row["backend"] = backend != nullptr ? backend->name : "composite";
  row["moh_ms"] = timing.moh_ms;
  row["rival"] = c.rival;
  row["rival_ms"] = timing.rival_ms;
  row["ratio"] = timing.ratio;
  row["ratio_low"] = timing.ratio_low;
  row["ratio_high"] = timing.ratio_high;
  row["pairs"] = timing.pairs;
  row["efficiency"] = 1.0 / (timing.ratio * in.activated);
  row["max_abs_error"] = error;
  // Work of the active heads alone: two products forward, five more backward; half of it where causal.
  const double products = 4.0 * static_cast<double>(c.batch * c.heads * c.tokens * c.tokens * c.head_dim) *
                          in.activated * (c.causal ? 0.5 : 1.0) * (backward ? 3.5 : 1.0);
  row["gflops"] = products / (timing.moh_ms * 1e6);
  return row;
}

}  // namespace

void bench_attention(const Grid& grid, const Emit& emit, const std::function<bool()>& stopped) {
  for (const auto& direction : grid.direction) {
    MOH_CHECK(direction == "forward" || direction == "both", "[bench] direction must be forward or both, got ",
              direction);
  }
  for (const auto& rival : grid.rival) {
    MOH_CHECK(rival == "torch_sdpa" || rival == "authors_form",
              "[bench] rival must be torch_sdpa or authors_form, got ", rival);
  }
  const auto threads = grid.threads.empty() ? std::vector<std::int64_t>{at::get_num_threads()} : grid.threads;
  for (const std::int64_t count : threads) {
    MOH_CHECK(count > 0, "[bench] threads must be positive, got ", count);
    at::set_num_threads(static_cast<int>(count));
    for (const auto& direction : grid.direction)
      for (const auto& dtype : grid.dtype)
        for (const std::int64_t heads : grid.heads)
          for (const std::int64_t kv_heads : grid.kv_heads.empty() ? std::vector{heads} : grid.kv_heads)
            for (const std::int64_t head_dim : grid.head_dim)
              for (const std::int64_t batch : grid.batch)
                for (const auto& causal : grid.causal)
                  for (const std::int64_t tokens : grid.tokens)
                    for (const double activated : grid.activated)
                      for (const auto& rival : grid.rival) {
                        if (stopped()) return;
                        MOH_CHECK(causal == "yes" || causal == "no", "[bench] causal must be yes or no, got ", causal);
                        MOH_CHECK(heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && head_dim > 0 && batch > 0 &&
                                      tokens > 0 && activated > 0 && activated <= 1,
                                  "[bench] sizes must be positive, kv_heads divide heads and activated be in (0, 1]");
                        emit(run_case({batch, tokens, heads, kv_heads, head_dim, activated, causal == "yes",
                                       ops::autocast_type(dtype).value_or(at::kFloat), direction, rival},
                                      grid));
                      }
  }
}

}  // namespace moh::bench
