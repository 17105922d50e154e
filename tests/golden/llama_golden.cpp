// Golden files of LLaMA, dense and MoH: layers, and whole models in Hugging Face folders.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "moh/generate/generate.h"
#include "moh/io/checkpoint.h"
#include "moh/layers/rope.h"
#include "moh/models/llama.h"
#include "moh/ops/head_attention.h"
#include "moh/ops/routing.h"
#include "tests/golden/golden_file.h"

namespace moh::golden {
namespace {

namespace fs = std::filesystem;

// The LLaMA attention layer by itself, from the model's building blocks.
struct LlamaLayer {
  Tensor y, head_out;
  ops::Routing routing;
};

LlamaLayer llama_layer(const GoldenFile& file, const std::map<std::string, Tensor>& leaves, const Tensor& x,
                       bool detach_gates, bool gradient_to_all) {
  const std::int64_t heads = file.number("heads"), kv_heads = file.number("kv_heads"), dim = file.number("head_dim");
  const auto split = [&](const char* name, std::int64_t count) {
    return at::linear(x, leaves.at(name)).reshape({x.size(0), x.size(1), count, dim});
  };
  const Tensor frequencies = layers::rope_inverse_frequencies(dim, file.config.at("rope_theta").get<double>(), {});
  const auto rope = layers::rope_table(frequencies, file["in.position_ids"]);
  const Tensor cos = rope.cos.reshape({-1, dim / 2}), sin = rope.sin.reshape({-1, dim / 2});
  if (file.has("rope.cos")) {
    expect_close(file, "rope.cos", at::cat({cos, cos}, -1), kLayerAtol);
    expect_close(file, "rope.sin", at::cat({sin, sin}, -1), kLayerAtol);
  }
  const Tensor plain = split("q_proj.weight", heads);
  const Tensor query = layers::apply_rope(plain, rope);
  const Tensor key = layers::apply_rope(split("k_proj.weight", kv_heads), rope);
  const Tensor value = split("v_proj.weight", kv_heads);
  LlamaLayer layer;
  layer.routing = ops::route_query_norm(plain, file.number("shared"), file.number("k"));
  const Tensor gates = detach_gates ? layer.routing.gates.detach() : layer.routing.gates;
  const Tensor attended = gradient_to_all ? ops::head_attention_composite(query, key, value, gates, std::nullopt, true)
                                          : ops::head_attention(query, key, value, gates, std::nullopt, true);
  layer.y = at::linear(attended.flatten(2), leaves.at("o_proj.weight"));
  {
    const c10::NoGradGuard no_grad;
    layer.head_out = ops::head_attention(query, key, value, at::ones_like(gates), std::nullopt, true);
  }
  return layer;
}

void check_llama_layer_values(const GoldenFile& file, const LlamaLayer& layer) {
  expect_close(file, "out.y", layer.y, kLayerAtol);
  expect_close(file, "gate.final", layer.routing.gates, kLayerAtol);
  expect_close(file, "gate.score", layer.routing.probabilities, kLayerAtol);
  expect_close(file, "gate.head_out", layer.head_out, kLayerAtol);
  expect_same_sets(file, "gate.topk", layer.routing.indices);
}

void check_llama_attention(const GoldenFile& file) {
  auto leaves = leaf_parameters(file);
  Tensor x = file["in.x"].clone().set_requires_grad(true);
  const LlamaLayer layer = llama_layer(file, leaves, x, /*detach_gates=*/true, /*gradient_to_all=*/false);
  check_llama_layer_values(file, layer);
  (layer.y * file["rand.target"]).sum().backward();
  expect_gradients(file, leaves, x, "grad.");
}

void check_llama_attention_ste(const GoldenFile& file) {
  auto leaves = leaf_parameters(file);
  Tensor x = file["in.x"].clone().set_requires_grad(true);
  int readings = 0;
  for (const bool all : {false, true}) {
    for (const bool balance : {false, true}) {
      const std::string prefix = std::string(all ? "ste_all" : "ste_selected") + (balance ? "_balance." : ".");
      const std::string gradients = prefix + "grad.";
      if (file.gradient_scale(gradients) == 0) continue;
      ++readings;
      clear_gradients(leaves, x);
      const LlamaLayer layer = llama_layer(file, leaves, x, /*detach_gates=*/false, all);
      check_llama_layer_values(file, layer);
      const Tensor paper = ops::load_balance_loss(layer.routing.probabilities, layer.routing.indices, "paper");
      expect_close(file, "out.balance_loss_paper", paper, kLayerAtol);
      expect_close(file, "out.balance_loss_code_scale",
                   ops::load_balance_loss(layer.routing.probabilities, layer.routing.indices, "authors"), kLayerAtol);
      Tensor total = (layer.y * file["rand.target"]).sum();
      if (balance) total = total + paper;
      total.backward();
      expect_gradients(file, leaves, x, gradients);
    }
  }
  EXPECT_GT(readings, 0) << file.path << ": no straight-through gradients found";
}

// Greedy decoding goes on from the prompt: the tokens that greedy.tokens has in common with the first input row.
void check_greedy(const GoldenFile& file, const models::Llama& model) {
  const auto row = [](const Tensor& ids) {
    const Tensor flat = ids.dim() == 2 ? ids[0].contiguous() : ids.contiguous();
    return std::vector<std::int64_t>(flat.const_data_ptr<std::int64_t>(),
                                     flat.const_data_ptr<std::int64_t>() + flat.numel());
  };
  const auto all = row(file["greedy.tokens"]), inputs = row(file["in.input_ids"]);
  const auto differ = std::mismatch(all.begin(), all.end(), inputs.begin(), inputs.end());
  std::vector<std::int64_t> got(all.begin(), differ.first);
  ASSERT_FALSE(got.empty()) << file.path << ": greedy.tokens and in.input_ids share no prompt";
  const auto result = generate::generate(model, got, static_cast<std::int64_t>(all.size() - got.size()), {}, {});
  got.insert(got.end(), result.ids.begin(), result.ids.end());
  expect_exact(file, "greedy.tokens", at::tensor(got, at::TensorOptions(at::kLong)));
}

Tensor next_token_loss(const Tensor& logits, const Tensor& ids) {
  const std::int64_t tokens = ids.size(1);
  return at::cross_entropy_loss(logits.narrow(1, 0, tokens - 1).flatten(0, 1), ids.narrow(1, 1, tokens - 1).flatten());
}

void check_llama_folder(const GoldenFile& file, const std::string& folder) {
  models::Llama model = models::Llama::load(folder, file.load_as());
  model.set_requires_grad(true);
  if (auto& moh = model.mutable_config().moh; moh && !file.config.contains("straight_through")) {
    moh->straight_through = layers::StraightThrough::kNone;  // the authors' gates carry no gradient
  }
  const auto output = model.forward({.ids = file["in.input_ids"], .keep_hidden = true});
  expect_close(file, "out.logits", output.logits, kModelAtol);
  expect_close(file, "out.last_hidden", output.last_hidden, kModelAtol);
  for (std::size_t i = 0; i < output.hidden.size(); ++i) {
    expect_close(file, "out.hidden." + std::to_string(i), output.hidden[i], kModelAtol);
  }
  for (std::size_t i = 0; i < output.routing.size(); ++i) {
    const std::string gate = "gate.model.layers." + std::to_string(i) + ".self_attn.";
    if (file.has(gate + "final")) expect_close(file, gate + "final", output.routing[i].gates, kModelAtol);
    if (file.has(gate + "score")) expect_close(file, gate + "score", output.routing[i].probabilities, kModelAtol);
    if (file.has(gate + "topk")) expect_same_sets(file, gate + "topk", output.routing[i].indices);
  }
  if (file.has("rope.inv_freq")) {
    const auto& config = model.config();
    expect_close(file, "rope.inv_freq",
                 layers::rope_inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling), kLayerAtol);
  }
  if (file.has("out.loss")) {
    const Tensor loss = next_token_loss(output.logits, file["in.input_ids"]);
    expect_close(file, "out.loss", loss, kModelAtol);
    loss.backward();
    for (const auto& [name, parameter] : model.parameters()) {
      if (file.has("grad.param." + name)) expect_gradient(file, "grad.param." + name, parameter.grad(), "grad.");
    }
  }
  const c10::NoGradGuard no_grad;
  if (file.has("cache.logits")) {
    const Tensor ids = file["in.input_ids"];
    const std::int64_t prefill = file["cache.prefill"].item<std::int64_t>();
    auto cache = model.make_cache(ids.size(0), ids.size(1));
    std::vector<Tensor> logits = {model.forward({.ids = ids.narrow(1, 0, prefill), .cache = &cache}).logits};
    for (std::int64_t t = prefill; t < ids.size(1); ++t) {
      logits.push_back(model.forward({.ids = ids.narrow(1, t, 1), .cache = &cache}).logits);
    }
    expect_close(file, "cache.logits", at::cat(logits, 1), kModelAtol);
  }
  if (file.has("padded.logits")) {
    const Tensor mask = file["padded.attention_mask"];
    const auto padded = model.forward(
        {.ids = file["padded.input_ids"], .position_ids = file["padded.position_ids"], .attention_mask = mask});
    const Tensor visible = mask.unsqueeze(-1).ne(0);
    expect_close(file, "padded.logits", at::where(visible, padded.logits, file["padded.logits"]), kModelAtol);
  }
}

void check_llama_model(const GoldenFile& file) {
  std::vector<std::string> folders;
  for (const auto& name : parse_json(file.metadata.at("model_folders"), file.path)) {
    folders.push_back(fs::path(file.path).parent_path() / name.get<std::string>());
  }
  ASSERT_FALSE(folders.empty());
  for (const std::string& folder : folders) {
    check_llama_folder(file, folder);
    if (file.has("greedy.tokens")) check_greedy(file, models::Llama::load(folder, file.load_as()));
    // Saved and loaded again, every tensor is the same to the bit.
    const auto model = models::Llama::load(folder);
    const std::string copy = fs::temp_directory_path() / ("moh_golden_" + std::to_string(::getpid()));
    model.save(copy);
    const auto again = io::load_tensors(copy);
    const Json config = io::load_config(folder);
    // Our own object `moh` is written whole, defaults included; a dense model's keys come back as they were.
    if (!config.contains("auto_map") && !config.contains("moh")) {
      EXPECT_EQ(io::load_config(copy), config) << folder;
    }
    fs::remove_all(copy);
    ASSERT_EQ(again.size(), model.parameters().size());
    for (std::size_t i = 0; i < again.size(); ++i) {
      EXPECT_EQ(again[i].second.scalar_type(), model.parameters()[i].second.scalar_type()) << again[i].first;
      EXPECT_TRUE(at::equal(again[i].second, model.parameters()[i].second)) << again[i].first;
      ++tensors_compared;
    }
  }
}

const RegisteredKind attention("llama_attention", check_llama_attention);
const RegisteredKind attention_ste("llama_attention_ste", check_llama_attention_ste);
const RegisteredKind dense_model("llama_model", check_llama_model);
const RegisteredKind moh_model("moh_llama_model", check_llama_model);

}  // namespace
}  // namespace moh::golden
