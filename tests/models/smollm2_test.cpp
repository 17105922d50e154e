// A real model in a GGUF file, SmolLM2-135M-Instruct, where it lies beside the project: every number of its reference.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "moh/eval/perplexity.h"
#include "moh/generate/generate.h"
#include "moh/io/files.h"
#include "moh/io/npy.h"
#include "moh/models/llama.h"
#include "moh/text/chat_template.h"
#include "moh/text/tokenizer.h"

namespace {

namespace fs = std::filesystem;
using Ids = std::vector<std::int64_t>;

class SmolLm2 : public testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(folder_ + "/reference.json")) GTEST_SKIP() << folder_ << " is not there";
    reference_ = moh::parse_json(moh::io::read_file(folder_ + "/reference.json"), "reference.json");
    tokenizer_ = moh::text::load_tokenizer(folder_);
  }
  std::string text(const char* name) const { return reference_[name]; }
  Ids ids(const char* name) const { return reference_[name]; }

  const std::string data_ = MOH_SOURCE_DIR "/../shared/data", folder_ = data_ + "/models/smollm2-135m-instruct";
  moh::Json reference_;
  std::shared_ptr<const moh::text::Tokenizer> tokenizer_;
};

TEST_F(SmolLm2, TextsHaveTheSameIds) {
  EXPECT_EQ(tokenizer_->encode(text("prompt")), ids("prompt_ids"));
  for (const auto& one : reference_["tokenizer"]) {
    EXPECT_EQ(tokenizer_->encode(one["text"].get<std::string>(), true), one["ids"].get<Ids>()) << one["text"];
  }
  const auto source = moh::text::find_chat_template(folder_);
  ASSERT_TRUE(source.has_value());
  const moh::text::ChatTemplate chat(source->text, source->label);
  const moh::Json messages = {{{"role", "system"}, {"content", "You are brief."}},
                              {{"role", "user"}, {"content", "What is 2+2?"}}};
  const std::string rendered = chat.render({{"messages", messages}, {"add_generation_prompt", true}});
  EXPECT_EQ(rendered, text("chat"));
  EXPECT_EQ(tokenizer_->encode(rendered, true), ids("chat_ids"));
}

TEST_F(SmolLm2, LogitsAndRepliesAreTheReferences) {
  const c10::NoGradGuard no_grad;
  const auto model = moh::models::Llama::load(folder_, at::kFloat);
  const at::Tensor prompt = at::tensor(ids("prompt_ids"), at::TensorOptions(at::kLong)).unsqueeze(0);
  const at::Tensor last = model.forward({.ids = prompt}).logits[0][-1];
  for (const auto& item : reference_["last_logits_top8"].items()) {
    EXPECT_NEAR(last[std::stoll(item.key())].item<double>(), item.value().get<double>(), 1e-3) << item.key();
  }
  EXPECT_EQ(moh::generate::generate(model, ids("prompt_ids"), 64, {}, {}).ids, ids("greedy_64"));
  const Ids reply = moh::generate::generate(model, ids("chat_ids"), 48, {}, {}).ids;
  EXPECT_EQ(reply, ids("chat_reply_ids"));
  std::string words;
  for (const std::int64_t id : reply) words += tokenizer_->piece_bytes(id);
  EXPECT_EQ(words, text("chat_reply"));
}

TEST_F(SmolLm2, PerplexitiesAreTheReferences) {
  constexpr std::size_t kCharacters = 60000;
  const std::string all = moh::io::read_file(data_ + "/text/wikitext-2/valid.txt");
  std::size_t end = 0;
  for (std::size_t count = 0; end < all.size(); ++end) {  // characters, not bytes
    if ((static_cast<unsigned char>(all[end]) & 0xc0) != 0x80 && count++ == kCharacters) break;
  }
  const Ids ids = tokenizer_->encode(all.substr(0, end));
  const std::string file = fs::temp_directory_path() / ("moh_smollm2_" + std::to_string(getpid()) + ".npy");
  std::vector<std::uint16_t> numbers(ids.begin(), ids.end());
  moh::io::write_npy(file, "u2", {static_cast<std::int64_t>(numbers.size())}, std::as_bytes(std::span(numbers)));
  for (const auto& [dtype, name] :
       {std::pair(at::kFloat, "perplexity_fp32"), {at::kBFloat16, "perplexity_bf16_weights"}}) {
    moh::models::Llama model = moh::models::Llama::load(folder_, dtype);
    if (dtype != at::kFloat) {  // weights rounded, products in fp32
      moh::io::NamedTensors wide;
      for (const auto& [key, tensor] : model.parameters()) wide.emplace_back(key, tensor.to(at::kFloat));
      model = moh::models::Llama(model.config(), std::move(wide));
    }
    const auto stream = moh::data::TokenStream::open(file, nullptr, model.config().vocab_size);
    const auto result = moh::eval::perplexity(model, stream, {.sequence = 512, .max_windows = 12});
    const double expected = reference_[name];
    EXPECT_NEAR(result.perplexity, expected, 1e-3 * expected) << name;
  }
  fs::remove(file);
}

}  // namespace
