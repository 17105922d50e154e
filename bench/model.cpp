// moh bench prefill and moh bench train: a whole LLaMA against its dense twin, the same weights by LibTorch's own
// operations. prefill: a prompt into the KV cache and the logits of its last token. train: forward, loss, backward,
// clipping and the fused AdamW step; both sides update the same weights with the same optimizer, so that only one set
// of weights, gradients and moments is in memory.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "bench/common.h"
#include "bench/dense_twin.h"
#include "bench/reference.h"
#include "moh/base/error.h"
#include "moh/models/llama.h"
#include "moh/models/llama_cost.h"
#include "moh/ops/autocast.h"
#include "moh/train/optimizer.h"

namespace moh::bench {
namespace {

using at::Tensor;

models::LlamaConfig config_of(const Case& c) {
  models::LlamaConfig config = models::llama_preset(c.preset);
  config.max_position_embeddings = std::max(config.max_position_embeddings, c.tokens);
  config.moh = models::make_moh_config(config.num_hidden_layers, config.num_attention_heads, c.activated, std::nullopt,
                                       std::nullopt, c.router);
  return config;
}

// The case with the sizes of its preset.
Case with_sizes(Case c, const models::LlamaConfig& config) {
  c.heads = config.num_attention_heads;
  c.kv_heads = config.num_key_value_heads;
  c.head_dim = config.head_dim;
  c.hidden = config.hidden_size;
  return c;
}

Tensor random_ids(const Case& c, const models::LlamaConfig& config, std::int64_t tokens, std::uint64_t seed) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::empty({c.batch, tokens}, at::TensorOptions(at::kLong)).random_(0, config.vocab_size, generator);
}

std::vector<Tensor> gates_of(const models::LlamaOutput& output) {
  std::vector<Tensor> gates;
  for (const auto& routing : output.routing) gates.push_back(routing.gates.detach());
  return gates;
}

// Whether LibTorch's attention runs faster on [B, H, T, D] copies, the copying included, and its time in one layer.
struct SdpaChoice {
  bool contiguous = false;
  double ms = 0;
};
SdpaChoice choose_sdpa(const Case& c, at::ScalarType dtype, bool backward) {
  const auto random = [&](std::int64_t heads) {
    return at::randn({c.batch, c.tokens, heads, c.head_dim}, at::TensorOptions(dtype)).set_requires_grad(backward);
  };
  Tensor query = random(c.heads), key = random(c.kv_heads), value = random(c.kv_heads);
  const Tensor grad = at::randn(query.sizes(), at::TensorOptions(dtype));
  const c10::AutoGradMode mode(backward);
  const auto run = [&](bool contiguous) {
    const auto heads_first = [&](const Tensor& tensor) {
      return contiguous ? tensor.transpose(1, 2).contiguous() : tensor.transpose(1, 2);
    };
    const Tensor out = at::scaled_dot_product_attention(heads_first(query), heads_first(key), heads_first(value), {},
                                                        0.0, true, {}, c.heads != c.kv_heads)
                           .transpose(1, 2);
    if (!backward) return;
    out.backward(grad);
    for (Tensor* tensor : {&query, &key, &value}) tensor->mutable_grad() = Tensor();
  };
  const double copied = best_ms([&] { run(true); }, 0), viewed = best_ms([&] { run(false); }, 0);
  return {copied < viewed, std::min(copied, viewed)};
}

// Hidden states after the last layer of the timed length, given the heads that moh chose: the twin with moh's gates.
double check_forward(const models::Llama& model, const DenseTwin& twin, const Tensor& ids, at::ScalarType dtype) {
  const c10::NoGradGuard no_grad;
  const auto output = model.forward({.ids = ids, .last_only = true});
  const auto gates = gates_of(output);
  const auto expected = twin.forward(ids, {.last_only = true, .gates = &gates});
  // Rounding grows over the layers.
  const double tolerance = 5 * tolerance_of(dtype);
  check_close(output.logits, expected.logits, tolerance, "the MoH model's logits of the last token");
  return check_close(output.last_hidden, expected.last_hidden, tolerance, "the MoH model's last hidden state");
}

// Cross-entropy of the next token, as training computes it.
Tensor loss_of(const Tensor& logits, const Tensor& targets) {
  return at::nll_loss(at::log_softmax(logits.reshape({targets.numel(), -1}), -1, at::kFloat), targets.reshape({-1}));
}

// Gradients of every parameter on a shorter text: moh against the authors' form with the same choice of heads.
void check_gradients(const models::Llama& model, const DenseTwin& twin, const Tensor& ids) {
  const std::int64_t tokens = ids.size(1) - 1;
  const Tensor inputs = ids.narrow(1, 0, tokens), targets = ids.narrow(1, 1, tokens);
  const auto take_gradients = [&] {
    std::vector<Tensor> gradients;
    for (auto& [name, parameter] : model.parameters()) {
      gradients.push_back(parameter.grad());
      Tensor(parameter).mutable_grad() = Tensor();
    }
    return gradients;
  };
  const auto output = model.forward({.ids = inputs});
  loss_of(output.logits, targets).backward();
  const auto ours = take_gradients();
  std::vector<Tensor> masks;
  for (const Tensor& gates : gates_of(output)) masks.push_back(gates.ne(0).to(gates.scalar_type()));
  loss_of(twin.forward(inputs, {.gated = true, .masks = &masks}).logits, targets).backward();
  const auto theirs = take_gradients();
  constexpr double kTolerance = 1e-2;  // of each gradient's norm
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const std::string& name = model.parameters()[i].first;
    MOH_CHECK(ours[i].defined() == theirs[i].defined(), "[bench] only one side gives `", name, "` a gradient");
    if (!ours[i].defined()) continue;
    const double norm = theirs[i].norm().item<double>(), error = (ours[i] - theirs[i]).norm().item<double>();
    MOH_CHECK(error <= kTolerance * norm, "[bench] the gradient of `", name,
              "` is wrong and was not timed: its error has norm ", error, ", the reference ", norm);
  }
}

// Products and attention of one pass over the model; `gates` per layer.
std::vector<Work> work_of(const Case& c, const models::LlamaConfig& config, const std::vector<Tensor>& gates,
                          bool routed, bool skips, bool train) {
  const double bytes = c.dtype == "fp32" ? 4 : 2;
  const auto tokens = static_cast<double>(c.batch * c.tokens), hidden = static_cast<double>(config.hidden_size);
  const auto dim = static_cast<double>(config.head_dim), wide = static_cast<double>(config.intermediate_size);
  std::vector<Work> products;
  const auto product = [&](double rows, double from, double to) {
    const Work forward = matrix_product(rows, from, to, bytes);
    products.push_back(train ? with_gradients(forward) : forward);
  };
  for (const Tensor& layer : gates) {
    const AttentionWork attention = attention_work(skips ? layer : at::ones_like(layer), c.tokens,
                                                   config.num_key_value_heads, config.head_dim, true, bytes);
    const double active = attention.active_rows / tokens;
    const bool all_queries = config.moh->router == "norm";
    const double query_heads = all_queries ? static_cast<double>(config.num_attention_heads) : active;
    product(tokens, hidden, query_heads * dim);
    product(tokens, hidden, 2 * static_cast<double>(config.num_key_value_heads) * dim);
    product(tokens, active * dim, hidden);
    if (routed && !all_queries) {
      product(tokens, hidden, static_cast<double>(config.num_attention_heads + 2));
    }
    products.push_back(attention_forward(attention));
    if (train) products.push_back(attention_backward(attention));
    product(tokens, hidden, 2 * wide);
    product(tokens, wide, hidden);
  }
  product(train ? tokens : static_cast<double>(c.batch), hidden, static_cast<double>(config.vocab_size));
  if (train) {  // AdamW reads weight, gradient and two moments, writes weight and moments
    products.push_back({0, 7 * 4 * static_cast<double>(models::llama_cost(config, c.tokens, 4).parameters)});
  }
  return products;
}

Row model_row(const char* subject, const Case& c, const Options& options, const Measured& measured,
              const models::LlamaConfig& config, double sdpa_ms) {
  const auto cost = models::llama_cost(config, c.tokens, 4);
  Row row = make_row(subject, c, options, measured);
  row["preset"] = c.preset;
  row["router"] = c.router;
  row["hidden"] = c.hidden;
  row["parameters"] = cost.parameters;
  row["moh_tokens_per_second"] = 1e3 * static_cast<double>(c.batch * c.tokens) / measured.timing.moh_ms;
  row["rival_tokens_per_second"] = 1e3 * static_cast<double>(c.batch * c.tokens) / measured.timing.rival_ms;
  // Attention (scores and values) in the dense twin: what head-skipping can save at most, besides projections.
  row["attention_flops_share"] = cost.attention_share;
  row["attention_time_share"] = static_cast<double>(config.num_hidden_layers) * sdpa_ms / measured.timing.rival_ms;
  return row;
}

}  // namespace

Row run_prefill(const Case& given, const Options& options) {
  const models::LlamaConfig config = config_of(given);
  const Case c = with_sizes(given, config);
  const c10::NoGradGuard no_grad;
  const auto dtype = type_of(c.dtype);
  models::Llama model = models::Llama::initialize(config, options.seed);
  if (dtype != at::kFloat) {
    io::NamedTensors tensors;
    for (const auto& [name, tensor] : model.parameters()) tensors.emplace_back(name, tensor.to(dtype));
    model = models::Llama(config, std::move(tensors));
  }
  DenseTwin twin(model);
  const SdpaChoice sdpa = choose_sdpa(c, dtype, /*backward=*/false);
  twin.set_contiguous(sdpa.contiguous);
  const Tensor ids = random_ids(c, config, c.tokens, options.seed);
  Measured measured;
  measured.max_abs_error = check_forward(model, twin, ids, dtype);

  models::KvCache cache = model.make_cache(c.batch, c.tokens);
  TwinCache twin_cache = twin.make_cache(c.batch, c.tokens);
  std::vector<Tensor> gates;
  const auto moh = [&] {
    cache.length = 0;
    gates = gates_of(model.forward({.ids = ids, .cache = &cache, .last_only = true}));
  };
  const bool authors = c.rival == "authors_form";
  const auto rival = [&] { twin.forward(ids, {.cache = &twin_cache, .last_only = true, .gated = authors}); };
  measured.timing = time_pair(moh, rival, options.seconds, options.pairs);
  measured.activated = 0;
  for (const Tensor& layer : gates) measured.activated += active_share(layer) / static_cast<double>(gates.size());
  measured.work = work_of(c, config, gates, /*routed=*/true, /*skips=*/true, /*train=*/false);
  measured.rival_work = work_of(c, config, gates, authors, /*skips=*/false, /*train=*/false);
  return model_row("prefill", c, options, measured, config, sdpa.ms);
}

Row run_train(const Case& given, const Options& options) {
  const models::LlamaConfig config = config_of(given);
  Case c = with_sizes(given, config);
  c.direction = "both";
  const std::optional<at::ScalarType> autocast = ops::autocast_type(c.dtype);
  models::Llama model = models::Llama::initialize(config, options.seed);
  model.set_requires_grad(true);
  DenseTwin twin(model);
  const SdpaChoice sdpa = choose_sdpa(c, type_of(c.dtype), /*backward=*/true);
  twin.set_contiguous(sdpa.contiguous);
  const Tensor ids = random_ids(c, config, c.tokens + 1, options.seed);
  const Tensor inputs = ids.narrow(1, 0, c.tokens), targets = ids.narrow(1, 1, c.tokens);
  constexpr std::int64_t kCheckedTokens = 256;
  Measured measured;
  check_gradients(model, twin, ids.narrow(1, 0, std::min(kCheckedTokens, c.tokens) + 1));
  {
    const ops::Autocast scope(autocast);
    measured.max_abs_error = check_forward(model, twin, inputs, type_of(c.dtype));
  }

  train::AdamW optimizer(model.parameters(), model.decays(), {});
  const auto update = [&](const Tensor& loss) {
    loss.backward();
    optimizer.clip_gradients(1.0);
    optimizer.step(1e-5);
    optimizer.clear_gradients();
  };
  std::vector<Tensor> gates;
  const auto moh = [&] {
    Tensor loss;
    {
      const ops::Autocast scope(autocast);
      const auto output = model.forward({.ids = inputs, .balance_loss = true});
      loss = loss_of(output.logits, targets);
      if (output.load_balance_loss.defined()) loss = loss + output.load_balance_loss * config.moh->beta;
      gates = gates_of(output);
    }
    update(loss);
  };
  const bool authors = c.rival == "authors_form";
  const auto rival = [&] {
    Tensor loss;
    {
      const ops::Autocast scope(autocast);
      loss = loss_of(twin.forward(inputs, {.gated = authors}).logits, targets);
    }
    update(loss);
  };
  measured.timing = time_pair(moh, rival, options.seconds, options.pairs);
  measured.activated = 0;
  for (const Tensor& layer : gates) measured.activated += active_share(layer) / static_cast<double>(gates.size());
  measured.work = work_of(c, config, gates, /*routed=*/true, /*skips=*/true, /*train=*/true);
  measured.rival_work = work_of(c, config, gates, authors, /*skips=*/false, /*train=*/true);
  return model_row("train", c, options, measured, config, sdpa.ms);
}

}  // namespace moh::bench
