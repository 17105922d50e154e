// LLaMA: presets, configuration, loading, caching, sampling; the stories260K checkpoint where it lies beside the
// project.
#include "moh/models/llama.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <tuple>

#include "moh/base/error.h"
#include "moh/eval/perplexity.h"
#include "moh/generate/generate.h"
#include "moh/io/files.h"
#include "moh/io/npy.h"
#include "moh/models/llama_cost.h"

namespace {

namespace fs = std::filesystem;
using at::Tensor;
using namespace moh::models;

LlamaConfig small_config() {
  LlamaConfig config = llama_preset("moh-llm-tiny");
  config.vocab_size = 96;
  return config;
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const moh::Error& error) {
    return error.what();
  }
  return "";
}

TEST(LlamaPresets, HaveThePapersSizes) {
  EXPECT_NEAR(static_cast<double>(llama_cost(llama_preset("llm-s"), 2048, 4).parameters), 186e6, 1e6);
  EXPECT_NEAR(static_cast<double>(llama_cost(llama_preset("llm-b"), 2048, 4).parameters), 881e6, 1e6);
  EXPECT_NEAR(static_cast<double>(llama_cost(llama_preset("moh-llm-b"), 2048, 4).parameters), 882e6, 1e6);
  EXPECT_NEAR(static_cast<double>(llama_cost(llama_preset("moh-llm-tiny"), 512, 4).parameters), 1e6, 1e5);
  const auto config = llama_preset("moh-llm-s");
  EXPECT_EQ(config.shared_heads(0), 6);
  EXPECT_EQ(config.top_k(11), 3);
  EXPECT_DOUBLE_EQ(config.activated_share(), 0.75);
  EXPECT_NE(error_of([] { llama_preset("moh-llm-x"); }).find("moh-llm-tiny"), std::string::npos);
}

TEST(LlamaCost, CountsTheKeysThatAWindowLeaves) {
  LlamaConfig config = llama_preset("llm-tiny");  // 4 layers of 8 heads of 16
  const auto flops = [&] { return llama_cost(config, 100, 4).dense_flops_per_token; };
  const double whole = flops();
  config.windows = {0, 10, 0, 200};
  double keys = 0, seen = 0;
  for (int t = 1; t <= 100; ++t) {
    keys += t;
    seen += std::min(t, 10);
  }
  EXPECT_NEAR(whole - flops(), 8 * 4 * 16 * (keys - seen) / 100, 1e-6);
}

TEST(MohConfig, DividesHeadsAsThePaperDoes) {
  const auto heads = [](double activated, std::optional<double> shared = {}, std::optional<std::int64_t> top_k = {}) {
    const auto moh = make_moh_config(1, 32, activated, shared, top_k, "norm");
    return std::pair(moh.shared_heads[0], moh.top_k[0]);
  };
  EXPECT_EQ(heads(0.75), std::pair(std::int64_t{16}, std::int64_t{8}));
  EXPECT_EQ(heads(0.5), std::pair(std::int64_t{8}, std::int64_t{8}));
  EXPECT_EQ(heads(0.75, 0.5), std::pair(std::int64_t{16}, std::int64_t{8}));
  EXPECT_EQ(heads(0.5, std::nullopt, 4), std::pair(std::int64_t{12}, std::int64_t{4}));
  EXPECT_EQ(heads(1.0), std::pair(std::int64_t{32}, std::int64_t{0}));
  EXPECT_THROW(make_moh_config(1, 32, 1.5, {}, {}, "norm"), moh::Error);
}

TEST(LlamaConfig, ReadsWhatItWritesAndNamesWhatIsWrong) {
  const moh::Json json = llama_config_json(small_config());
  EXPECT_EQ(llama_config_json(parse_llama_config(json, "config.json")), json);
  const auto broken = [&](const char* key, const moh::Json& value) {
    moh::Json copy = json;
    copy[key] = value;
    return error_of([&] { parse_llama_config(copy, "config.json"); });
  };
  EXPECT_NE(broken("num_attention_heads", -1).find("num_attention_heads"), std::string::npos);
  EXPECT_NE(broken("hidden_size", "wide").find("hidden_size"), std::string::npos);
  EXPECT_NE(broken("num_key_value_heads", 3).find("multiple"), std::string::npos);
  EXPECT_NE(broken("model_type", "mamba").find("mamba"), std::string::npos);
  EXPECT_NE(broken("rope_scaling", {{"rope_type", "yarn"}}).find("yarn"), std::string::npos);
  moh::Json copy = json;
  copy["moh"]["shared_head"] = 3;
  EXPECT_NE(error_of([&] { parse_llama_config(copy, "config.json"); }).find("shared_heads"), std::string::npos);
  copy = json;
  copy["moh"]["top_k"] = 9;
  EXPECT_NE(error_of([&] { parse_llama_config(copy, "config.json"); }).find("top_k"), std::string::npos);
}

TEST(Llama, NamesTensorsThatAreMissingOrExtraOrOfAnotherShape) {
  const Llama model = Llama::initialize(small_config(), 1);
  auto tensors = model.parameters();
  const std::string name = tensors.back().first;
  auto fewer = tensors;
  fewer.pop_back();
  EXPECT_NE(error_of([&] { Llama(small_config(), fewer); }).find(name + "` is missing"), std::string::npos);
  auto more = tensors;
  more.emplace_back("model.extra", at::zeros({1}));
  EXPECT_NE(error_of([&] { Llama(small_config(), more); }).find("model.extra"), std::string::npos);
  tensors.back().second = at::zeros({2, 2});
  EXPECT_NE(error_of([&] { Llama(small_config(), tensors); }).find(name), std::string::npos);
}

TEST(Llama, CacheGivesTheSameLogitsAsOnePass) {
  const c10::NoGradGuard no_grad;
  const Llama model = Llama::initialize(small_config(), 2);
  const Tensor ids = at::randint(96, {2, 20}, at::TensorOptions(at::kLong));
  const Tensor whole = model.forward({.ids = ids}).logits;
  auto cache = model.make_cache(2, 20);
  std::vector<Tensor> parts;
  for (const auto& [start, length] : {std::pair(0, 7), std::pair(7, 1), std::pair(8, 12)}) {
    parts.push_back(model.forward({.ids = ids.narrow(1, start, length), .cache = &cache}).logits);
  }
  EXPECT_LE((at::cat(parts, 1) - whole).abs().max().item<double>(), 1e-5);
}

TEST(Llama, WeightsStoredAnewGiveNearlyTheSameLogits) {
  const c10::NoGradGuard no_grad;
  LlamaConfig config = small_config();
  config.moh = make_moh_config(config.num_hidden_layers, config.num_attention_heads, 0.5, 0.25, std::nullopt,
                               "two-stage");
  const Tensor ids = at::randint(96, {2, 40}, at::TensorOptions(at::kLong));
  const Tensor expected = Llama::initialize(config, 5).forward({.ids = ids}).logits;
  for (const auto& [storage, most, least_bits, most_bits] :
       {std::tuple(moh::ops::WeightStorage::kSame, 1e-5, 32.0, 33.0),
        {moh::ops::WeightStorage::kInt8, 0.03, 8.5, 8.6},
        {moh::ops::WeightStorage::kInt4, 0.3, 4.5, 5.0}}) {
    Llama model = Llama::initialize(config, 5);
    EXPECT_FALSE(model.is_packed());
    const auto bytes = static_cast<double>(model.pack_weights(storage));
    EXPECT_TRUE(model.is_packed());
    double numbers = 0;
    for (const auto& [name, tensor] : model.parameters()) {
      if (name.find("_proj.weight") != std::string::npos || name.find("lm_head") != std::string::npos ||
          (config.tie_word_embeddings && name.find("embed_tokens") != std::string::npos)) {
        numbers += static_cast<double>(tensor.numel());
      }
    }
    EXPECT_GE(8 * bytes / numbers, least_bits);
    EXPECT_LE(8 * bytes / numbers, most_bits);
    const Tensor logits = model.forward({.ids = ids}).logits;
    const double error = ((logits - expected).norm() / expected.norm()).item<double>();
    EXPECT_LE(error, most);
    if (storage != moh::ops::WeightStorage::kSame) {
      EXPECT_GT(error, 1e-4);  // something was rounded
    }
    // Token by token, through the cache, the same.
    auto cache = model.make_cache(2, 40);
    for (std::int64_t i = 0; i < 40; ++i) {
      const Tensor one = model.forward({.ids = ids.narrow(1, i, 1), .cache = &cache}).logits;
      EXPECT_LE((one - logits.narrow(1, i, 1)).abs().max().item<double>(), 1e-4) << i;
    }
  }
}

TEST(Llama, AllHeadsOnWithTheNormRouterIsTheDenseModel) {
  const c10::NoGradGuard no_grad;
  LlamaConfig config = llama_preset("llm-tiny");
  const Llama dense = Llama::initialize(config, 3);
  config.moh = make_moh_config(config.num_hidden_layers, config.num_attention_heads, 1.0, 0.5, std::nullopt, "norm");
  const Llama moh(config, dense.parameters());
  const Tensor ids = at::randint(512, {1, 50}, at::TensorOptions(at::kLong));
  EXPECT_TRUE(at::equal(dense.forward({.ids = ids}).logits, moh.forward({.ids = ids}).logits));
}

// The real checkpoint of ../shared/data, if it is there.
class Stories260K : public testing::Test {
 protected:
  void SetUp() override {
    if (!fs::is_directory(folder_)) GTEST_SKIP() << folder_ << " is not there";
  }
  const std::string data_ = MOH_SOURCE_DIR "/../shared/data", folder_ = data_ + "/models/stories260K";
};

TEST_F(Stories260K, LogitsAndGreedyTokensMatchTheReference) {
  const c10::NoGradGuard no_grad;
  const Llama model = Llama::load(folder_);
  const std::string file = folder_ + "/reference/reference.json";
  const moh::Json reference = moh::parse_json(moh::io::read_file(file), file);
  const auto find = [&](const std::string& wanted) -> std::vector<std::int64_t> {
    for (const auto& item : reference.items()) {
      if (item.key().find(wanted) != std::string::npos && item.value().is_array()) return item.value();
    }
    throw moh::Error("no " + wanted);
  };
  const auto prompt = find("ids");
  const moh::io::MappedFile map(folder_ + "/reference/logits_f64.npy");
  const auto header = moh::io::read_npy_header(map.bytes(), "logits");
  const Tensor expected = at::from_blob(const_cast<std::byte*>(map.bytes().data()) + header.data_offset, header.shape,
                                        at::TensorOptions(at::kDouble));
  const Tensor ids = at::tensor(prompt, at::TensorOptions(at::kLong)).unsqueeze(0);
  EXPECT_LE((model.forward({.ids = ids}).logits[0].to(at::kDouble) - expected).abs().max().item<double>(), 5e-5);

  const auto greedy = find("greedy");
  const auto result = moh::generate::generate(model, {1}, 256, {}, {});
  std::vector<std::int64_t> got = result.ids;
  if (greedy.size() == 257) got.insert(got.begin(), 1);
  EXPECT_EQ(got, greedy);
}

TEST_F(Stories260K, PerplexityIsThePublishedOne) {
  const Llama model = Llama::load(folder_);
  const auto stream =
      moh::data::TokenStream::open(data_ + "/stories260K-samples/valid.npy", nullptr, model.config().vocab_size);
  const auto result = moh::eval::perplexity(model, stream, {.sequence = 512});
  EXPECT_EQ(result.tokens, stream.size() - 1);
  EXPECT_NEAR(result.perplexity, 3.908, 0.002);
}

TEST(Perplexity, EveryTargetCountsOnce) {
  // A model of zero weights gives every token the same probability.
  LlamaConfig config = small_config();
  Llama model = Llama::initialize(config, 1);
  for (const auto& [name, tensor] : model.parameters()) tensor.zero_();
  const std::string file = fs::temp_directory_path() / ("moh_ppl_" + std::to_string(getpid()) + ".npy");
  std::vector<std::uint16_t> ids(1000, 5);
  moh::io::write_npy(file, "u2", {1000}, std::as_bytes(std::span(ids)));
  const auto stream = moh::data::TokenStream::open(file, nullptr, 96);
  const auto result = moh::eval::perplexity(model, stream, {.sequence = 64, .batch = 3});
  fs::remove(file);
  EXPECT_EQ(result.tokens, 999);
  EXPECT_NEAR(result.perplexity, 96, 1e-3);
  EXPECT_THROW(moh::eval::perplexity(model, stream, {.sequence = 4096}), moh::Error);
}

}  // namespace
