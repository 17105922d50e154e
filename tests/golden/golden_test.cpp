// Golden files: every *.safetensors of a folder is a case that describes itself in its metadata. Knows no file by name
// and no shape by heart. MOH_GOLDEN_DIR names the folder; without it ../shared/golden beside the checkout if that is
// there, else the project's own tests/golden/data.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <map>
#include <set>

#include "moh/base/fields.h"
#include "moh/generate/generate.h"
#include "moh/io/checkpoint.h"
#include "moh/io/safetensors.h"
#include "moh/kernels/backend.h"
#include "moh/layers/moh_attention.h"
#include "moh/layers/rope.h"
#include "moh/models/llama.h"
#include "moh/ops/head_attention.h"
#include "moh/ops/routing.h"

namespace {

namespace fs = std::filesystem;
using at::Tensor;
using moh::Json;

int files_compared = 0, tensors_compared = 0;
std::vector<std::string> files_skipped;

// Tolerances of the golden files: |a - b| <= atol + rtol * |b|.
constexpr double kRtol = 1e-4, kLayerAtol = 1e-5, kModelAtol = 5e-5;

std::string golden_folder() {
  if (const char* folder = std::getenv("MOH_GOLDEN_DIR")) return folder;
  const std::string shared = MOH_SOURCE_DIR "/../shared/golden";
  return fs::is_directory(shared) ? shared : MOH_SOURCE_DIR "/tests/golden/data";
}

struct GoldenFile {
  std::string path, kind;
  Json config;
  std::map<std::string, std::string> metadata;
  std::map<std::string, Tensor> tensors;

  explicit GoldenFile(const std::string& file) : path(file) {
    metadata = moh::io::SafetensorsFile(file).metadata();
    kind = metadata.contains("kind") ? metadata.at("kind") : "";
    if (metadata.contains("config")) config = moh::parse_json(metadata.at("config"), file);
    for (auto& [name, tensor] : moh::io::load_tensors(file)) tensors.emplace(name, tensor);
  }
  bool has(const std::string& name) const { return tensors.contains(name); }
  // Weights of a half type whose reference was computed in fp32 are loaded as fp32.
  std::optional<at::ScalarType> load_as() const {
    const bool widened = config.is_object() && config.value("load_as", "") == "fp32";
    return widened ? std::optional(at::kFloat) : std::nullopt;
  }
  const Tensor& operator[](const std::string& name) const {
    const auto found = tensors.find(name);
    if (found == tensors.end()) throw moh::Error(path + " has no tensor " + name);
    return found->second;
  }
  std::int64_t number(const char* key) const { return config.at(key).get<std::int64_t>(); }

  // Largest value in all gradients whose names begin with `prefix`.
  double gradient_scale(const std::string& prefix) const {
    double largest = 0;
    for (const auto& [name, tensor] : tensors) {
      if (name.starts_with(prefix)) largest = std::max(largest, tensor.abs().max().item<double>());
    }
    return largest;
  }
};

void expect_close(const GoldenFile& file, const std::string& name, const Tensor& actual, double atol) {
  const Tensor expected = file[name].to(at::kDouble);
  ASSERT_EQ(actual.numel(), expected.numel()) << file.path << ": " << name;
  const Tensor got = actual.detach().to(at::kDouble).reshape(expected.sizes());
  ++tensors_compared;
  if (expected.numel() == 0) return;
  const Tensor excess = (got - expected).abs() - (expected.abs() * kRtol + atol);
  const std::int64_t worst = excess.argmax().item<std::int64_t>();
  EXPECT_TRUE(at::isfinite(got).all().item<bool>() && excess.max().item<double>() <= 0)
      << file.path << ": " << name << "[" << worst << "] is " << got.flatten()[worst].item<double>() << ", expected "
      << expected.flatten()[worst].item<double>() << "; largest error " << (got - expected).abs().max().item<double>();
}

void expect_gradient(const GoldenFile& file, const std::string& name, const Tensor& actual, const std::string& prefix) {
  ASSERT_TRUE(actual.defined()) << file.path << ": " << name << " is missing";
  expect_close(file, name, actual, 1e-5 * file[name].abs().max().item<double>() + 1e-6 * file.gradient_scale(prefix));
}

// Rows of chosen heads, compared as sets.
void expect_same_sets(const GoldenFile& file, const std::string& name, const Tensor& actual) {
  const Tensor expected = file[name];
  ++tensors_compared;
  EXPECT_TRUE(at::equal(std::get<0>(actual.reshape(expected.sizes()).sort(-1)), std::get<0>(expected.sort(-1))))
      << file.path << ": " << name;
}

void expect_exact(const GoldenFile& file, const std::string& name, const Tensor& actual) {
  ++tensors_compared;
  EXPECT_TRUE(at::equal(actual.reshape(file[name].sizes()), file[name]))
      << file.path << ": " << name << "\ngot " << actual << "\nexpected " << file[name];
}

std::map<std::string, Tensor> leaf_parameters(const GoldenFile& file) {
  std::map<std::string, Tensor> leaves;
  for (const auto& [name, tensor] : file.tensors) {
    if (name.starts_with("param.")) leaves[name.substr(6)] = tensor.clone().set_requires_grad(true);
  }
  return leaves;
}

std::optional<Tensor> optionally(const std::map<std::string, Tensor>& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  return found == tensors.end() ? std::nullopt : std::optional<Tensor>(found->second);
}

void expect_gradients(const GoldenFile& file, const std::map<std::string, Tensor>& leaves, const Tensor& x,
                      const std::string& prefix) {
  if (file.has(prefix + "in.x")) expect_gradient(file, prefix + "in.x", x.grad(), prefix);
  for (const auto& [name, leaf] : leaves) {
    if (file.has(prefix + "param." + name)) expect_gradient(file, prefix + "param." + name, leaf.grad(), prefix);
  }
}

void clear_gradients(std::map<std::string, Tensor>& leaves, Tensor& x) {
  for (auto& [name, leaf] : leaves) leaf.mutable_grad() = Tensor();
  x.mutable_grad() = Tensor();
}

void check_dit_attention(const GoldenFile& file) {
  auto leaves = leaf_parameters(file);
  Tensor x = file["in.x"].clone().set_requires_grad(true);
  const std::int64_t heads = file.number("heads"), shared = file.number("shared"), top_k = file.number("k");
  const moh::layers::MohAttentionWeights weights{leaves.at("qkv.weight"),          optionally(leaves, "qkv.bias"),
                                                 leaves.at("proj.weight"),         optionally(leaves, "proj.bias"),
                                                 optionally(leaves, "wg.weight"),  optionally(leaves, "wg_1.weight"),
                                                 optionally(leaves, "wg_0.weight")};
  const auto output = moh::layers::moh_attention(x, weights, {heads, shared, top_k, "authors", false});
  expect_close(file, "out.y", output.y, kLayerAtol);
  expect_close(file, "gate.final", output.routing.gates, kLayerAtol);
  if (file.has("gate.topk")) expect_same_sets(file, "gate.topk", output.routing.indices);
  if (file.has("gate.routed_probs")) expect_close(file, "gate.routed_probs", output.routing.probabilities, kLayerAtol);
  if (file.has("gate.head_out")) {
    const c10::NoGradGuard no_grad;
    const Tensor qkv =
        at::linear(x, weights.qkv_weight, weights.qkv_bias).reshape({x.size(0), x.size(1), 3, heads, -1});
    const Tensor ones = at::ones_like(output.routing.gates);
    expect_close(file, "gate.head_out",
                 moh::ops::head_attention(qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), ones), kLayerAtol);
  }
  Tensor total = (output.y * file["rand.target"]).sum();
  if (file.has("out.aux_loss")) {
    expect_close(file, "out.aux_loss", output.load_balance_loss, kLayerAtol);
    total = total + output.load_balance_loss;
  }
  expect_close(file, "out.total", total, kModelAtol);
  total.backward();
  expect_gradients(file, leaves, x, "grad.");
}

// The LLaMA attention layer by itself, from the model's building blocks.
struct LlamaLayer {
  Tensor y, head_out;
  moh::ops::Routing routing;
};

LlamaLayer llama_layer(const GoldenFile& file, const std::map<std::string, Tensor>& leaves, const Tensor& x,
                       bool detach_gates, bool gradient_to_all) {
  const std::int64_t heads = file.number("heads"), kv_heads = file.number("kv_heads"), dim = file.number("head_dim");
  const auto split = [&](const char* name, std::int64_t count) {
    return at::linear(x, leaves.at(name)).reshape({x.size(0), x.size(1), count, dim});
  };
  const Tensor frequencies = moh::layers::rope_inverse_frequencies(dim, file.config.at("rope_theta").get<double>(), {});
  const auto rope = moh::layers::rope_table(frequencies, file["in.position_ids"]);
  const Tensor cos = rope.cos.reshape({-1, dim / 2}), sin = rope.sin.reshape({-1, dim / 2});
  if (file.has("rope.cos")) {
    expect_close(file, "rope.cos", at::cat({cos, cos}, -1), kLayerAtol);
    expect_close(file, "rope.sin", at::cat({sin, sin}, -1), kLayerAtol);
  }
  const Tensor plain = split("q_proj.weight", heads);
  const Tensor query = moh::layers::apply_rope(plain, rope);
  const Tensor key = moh::layers::apply_rope(split("k_proj.weight", kv_heads), rope);
  const Tensor value = split("v_proj.weight", kv_heads);
  LlamaLayer layer;
  layer.routing = moh::ops::route_query_norm(plain, file.number("shared"), file.number("k"));
  const Tensor gates = detach_gates ? layer.routing.gates.detach() : layer.routing.gates;
  const Tensor attended = gradient_to_all
                              ? moh::ops::head_attention_composite(query, key, value, gates, std::nullopt, true)
                              : moh::ops::head_attention(query, key, value, gates, std::nullopt, true);
  layer.y = at::linear(attended.flatten(2), leaves.at("o_proj.weight"));
  {
    const c10::NoGradGuard no_grad;
    layer.head_out = moh::ops::head_attention(query, key, value, at::ones_like(gates), std::nullopt, true);
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
      const Tensor paper = moh::ops::load_balance_loss(layer.routing.probabilities, layer.routing.indices, "paper");
      expect_close(file, "out.balance_loss_paper", paper, kLayerAtol);
      expect_close(file, "out.balance_loss_code_scale",
                   moh::ops::load_balance_loss(layer.routing.probabilities, layer.routing.indices, "authors"),
                   kLayerAtol);
      Tensor total = (layer.y * file["rand.target"]).sum();
      if (balance) total = total + paper;
      total.backward();
      expect_gradients(file, leaves, x, gradients);
    }
  }
  EXPECT_GT(readings, 0) << file.path << ": no straight-through gradients found";
}

// Greedy decoding goes on from the prompt: the tokens that greedy.tokens has in common with the first input row.
void check_greedy(const GoldenFile& file, const moh::models::Llama& model) {
  const auto row = [](const Tensor& ids) {
    const Tensor flat = ids.dim() == 2 ? ids[0].contiguous() : ids.contiguous();
    return std::vector<std::int64_t>(flat.const_data_ptr<std::int64_t>(),
                                     flat.const_data_ptr<std::int64_t>() + flat.numel());
  };
  const auto all = row(file["greedy.tokens"]), inputs = row(file["in.input_ids"]);
  const auto differ = std::mismatch(all.begin(), all.end(), inputs.begin(), inputs.end());
  std::vector<std::int64_t> got(all.begin(), differ.first);
  ASSERT_FALSE(got.empty()) << file.path << ": greedy.tokens and in.input_ids share no prompt";
  const auto result = moh::generate::generate(model, got, static_cast<std::int64_t>(all.size() - got.size()), {}, {});
  got.insert(got.end(), result.ids.begin(), result.ids.end());
  expect_exact(file, "greedy.tokens", at::tensor(got, at::TensorOptions(at::kLong)));
}

Tensor next_token_loss(const Tensor& logits, const Tensor& ids) {
  const std::int64_t tokens = ids.size(1);
  return at::cross_entropy_loss(logits.narrow(1, 0, tokens - 1).flatten(0, 1), ids.narrow(1, 1, tokens - 1).flatten());
}

void check_llama_folder(const GoldenFile& file, const std::string& folder) {
  moh::models::Llama model = moh::models::Llama::load(folder, file.load_as());
  model.set_requires_grad(true);
  if (auto& moh = model.mutable_config().moh; moh && !file.config.contains("straight_through")) {
    moh->straight_through = "none";  // the authors' gates carry no gradient
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
                 moh::layers::rope_inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling),
                 kLayerAtol);
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
  for (const auto& name : moh::parse_json(file.metadata.at("model_folders"), file.path)) {
    folders.push_back(fs::path(file.path).parent_path() / name.get<std::string>());
  }
  ASSERT_FALSE(folders.empty());
  for (const std::string& folder : folders) {
    check_llama_folder(file, folder);
    if (file.has("greedy.tokens")) check_greedy(file, moh::models::Llama::load(folder, file.load_as()));
    // Saved and loaded again, every tensor is the same to the bit.
    const auto model = moh::models::Llama::load(folder);
    const std::string copy = fs::temp_directory_path() / ("moh_golden_" + std::to_string(::getpid()));
    model.save(copy);
    const auto again = moh::io::load_tensors(copy);
    const Json config = moh::io::load_config(folder);
    if (!config.contains("auto_map")) EXPECT_EQ(moh::io::load_config(copy), config) << folder;
    fs::remove_all(copy);
    ASSERT_EQ(again.size(), model.parameters().size());
    for (std::size_t i = 0; i < again.size(); ++i) {
      EXPECT_EQ(again[i].second.scalar_type(), model.parameters()[i].second.scalar_type()) << again[i].first;
      EXPECT_TRUE(at::equal(again[i].second, model.parameters()[i].second)) << again[i].first;
      ++tensors_compared;
    }
  }
}

using Check = void (*)(const GoldenFile&);
// Kinds that code handles; nullptr: planned, listed as skipped.
const std::map<std::string, Check> kKinds = {{"dit_attention", check_dit_attention},
                                             {"llama_attention", check_llama_attention},
                                             {"llama_attention_ste", check_llama_attention_ste},
                                             {"llama_model", check_llama_model},
                                             {"moh_llama_model", check_llama_model},
                                             {"vit_attention", nullptr},
                                             {"vit_aggregated", nullptr},
                                             {"vit_model", nullptr},
                                             {"dit_diffusion", nullptr},
                                             {"dit_model", nullptr}};

class Golden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {  // a backend forced by name that this CPU lacks
    const char* name = std::getenv("MOH_BACKEND");
    for (const auto& backend : moh::kernels::backends()) {
      if (name == nullptr || backend.name != std::string(name) || backend.unavailable_reason().empty()) continue;
      GTEST_SKIP() << name << ": " << backend.unavailable_reason();
    }
  }
};

TEST_P(Golden, Matches) {
  const GoldenFile file(GetParam());
  ASSERT_TRUE(kKinds.contains(file.kind)) << file.path << ": nobody planned the kind `" << file.kind << "`";
  const Check check = kKinds.at(file.kind);
  if (check == nullptr) {
    files_skipped.push_back(fs::path(file.path).filename().string() + " (" + file.kind + ")");
    GTEST_SKIP() << "no code handles the kind " << file.kind << " yet";
  }
  const int before = tensors_compared;
  check(file);
  EXPECT_GT(tensors_compared, before) << file.path << ": nothing was compared";
  ++files_compared;
}

std::vector<std::string> golden_files() {
  std::vector<std::string> files;
  if (fs::is_directory(golden_folder())) {
    for (const auto& entry : fs::directory_iterator(golden_folder())) {
      if (entry.is_regular_file() && entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

INSTANTIATE_TEST_SUITE_P(Files, Golden, testing::ValuesIn(golden_files()), [](const auto& info) {
  std::string name = fs::path(info.param).stem().string();
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
});

TEST(GoldenFolder, HasFiles) { EXPECT_FALSE(golden_files().empty()) << golden_folder() << " has no golden files"; }

class Summary : public testing::Environment {
 public:
  void TearDown() override {
    std::cout << "golden: " << files_compared << " files, " << tensors_compared << " tensors compared from "
              << golden_folder() << "\n";
    for (const auto& name : files_skipped) std::cout << "golden: skipped " << name << "\n";
  }
};
const auto* const summary = testing::AddGlobalTestEnvironment(new Summary);

}  // namespace
