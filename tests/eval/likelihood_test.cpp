// The oracle is one plain forward pass for each text, without cache, padding or anything shared.
#include "moh/eval/likelihood.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <random>

#include "moh/eval/greedy.h"
#include "moh/generate/generate.h"
#include "moh/models/llama_config.h"
#include "moh/text/utf8.h"
#include "tests/base/error_of.h"

namespace moh::eval {
namespace {

using test::error_of;

models::Llama small_model(const std::string& preset, std::int64_t window = 0) {
  models::LlamaConfig config = models::llama_preset(preset);
  config.vocab_size = 260;
  config.num_hidden_layers = 2;
  config.max_position_embeddings = 64;
  if (config.moh) config.moh->top_k.resize(2), config.moh->shared_heads.resize(2);
  if (window > 0) config.windows = {0, window};
  config.initializer_range = 0.3;
  return models::Llama::initialize(config, 7);
}

Likelihood plain(const models::Llama& model, const Continuation& asked) {
  const c10::NoGradGuard no_grad;
  Ids ids = asked.context;
  ids.insert(ids.end(), asked.ids.begin(), asked.ids.end());
  const auto context = static_cast<std::size_t>(model.config().max_position_embeddings);
  if (ids.size() > context + 1) ids.erase(ids.begin(), ids.end() - static_cast<std::ptrdiff_t>(context) - 1);
  const auto length = static_cast<std::int64_t>(ids.size()) - 1, own = static_cast<std::int64_t>(asked.ids.size());
  const at::Tensor all = at::tensor(ids, at::TensorOptions(at::kLong)).unsqueeze(0);
  const at::Tensor logits = model.forward({.ids = all.narrow(1, 0, length)}).logits[0].narrow(0, length - own, own);
  const at::Tensor wanted = all[0].narrow(0, length + 1 - own, own);
  const at::Tensor chances = at::log_softmax(logits.to(at::kDouble), -1).gather(1, wanted.unsqueeze(1));
  return {chances.sum().item<double>(), logits.argmax(-1).equal(wanted)};
}

class Texts {
 public:
  Ids operator()(std::size_t length) {
    Ids ids(length);
    for (auto& id : ids) id = static_cast<std::int64_t>(random_() % 260);
    return ids;
  }

 private:
  std::mt19937 random_{3};
};

std::vector<Question> questions() {
  Texts text;
  std::vector<Question> all;
  for (int i = 0; i < 6; ++i) {  // choices of several lengths
    const Ids context = text(3 + 5 * static_cast<std::size_t>(i));
    all.push_back({{context, text(4)}, {context, text(1)}, {context, text(9)}, {context, text(1)}});
  }
  const Ids context = text(7), first = text(3);
  Ids longer = first;
  longer.push_back(5);
  all.push_back({{context, first}, {context, longer}, {context, first}});  // one begins another, one comes twice
  all.push_back({{text(5), first}, {text(6), first}});                     // nothing in common
  all.push_back({{text(100), text(3)}, {text(64), text(64)}});             // too long
  all.push_back({{{1}, text(1)}});
  return all;
}

void expect_plain(const models::Llama& model, const std::vector<Question>& asked, std::int64_t tokens) {
  LikelihoodScorer scorer(model, {.tokens = tokens});
  std::vector<int> told(asked.size(), 0);
  scorer.score(asked, [&](std::size_t i, const std::vector<Likelihood>& got) {
    ++told[i];
    ASSERT_EQ(got.size(), asked[i].size());
    for (std::size_t c = 0; c < got.size(); ++c) {
      const Likelihood expected = plain(model, asked[i][c]);
      EXPECT_NEAR(got[c].log_likelihood, expected.log_likelihood, 1e-4) << "question " << i << ", continuation " << c;
      EXPECT_EQ(got[c].greedy, expected.greedy);
    }
  });
  EXPECT_EQ(told, std::vector<int>(asked.size(), 1));
}

TEST(Likelihood, SharedWorkGivesWhatPlainWorkGives) {
  for (const char* preset : {"llm-tiny", "moh-llm-tiny"}) {
    const models::Llama model = small_model(preset);
    for (const std::int64_t tokens : {1, 40, 512}) expect_plain(model, questions(), tokens);
  }
  expect_plain(small_model("llm-tiny", 6), questions(), 512);
}

TEST(Likelihood, GreedyIsTold) {
  const models::Llama model = small_model("llm-tiny");
  const Ids prompt = {1, 2, 3};
  const Ids best = generate::generate(model, prompt, 4, {}, {}).ids;
  expect_plain(model, {{{prompt, best}, {prompt, {best[0], best[1], best[2], (best[3] + 1) % 260}}}}, 512);
  LikelihoodScorer scorer(model, {});
  scorer.score({{{prompt, best}}}, [](std::size_t, const auto& got) { EXPECT_TRUE(got[0].greedy); });
}

// What all questions begin with is computed once: fewer tokens than in the texts, the same answers.
TEST(Likelihood, TheBeginningOfAllQuestionsIsComputedOnce) {
  Texts text;
  const Ids beginning = text(40);
  std::vector<Question> asked;
  for (std::size_t i = 0; i < 5; ++i) {
    Ids context = beginning;
    const Ids own = text(3 + i);
    context.insert(context.end(), own.begin(), own.end());
    asked.push_back({{context, text(1)}, {context, text(4)}});
  }
  for (const char* preset : {"llm-tiny", "moh-llm-tiny"}) expect_plain(small_model(preset), asked, 24);
  const models::Llama model = small_model("llm-tiny");
  LikelihoodScorer scorer(model, {});
  scorer.score(asked, [](std::size_t, const auto&) {});
  EXPECT_LE(scorer.tokens(), 40 + 5 * 7 + 5 * 4);
}

TEST(Likelihood, StopsAndRefuses) {
  const models::Llama model = small_model("llm-tiny");
  int passes = 0;
  LikelihoodScorer stopped(model, {.tokens = 1, .cancelled = [&] { return ++passes > 3; }});
  std::size_t told = 0;
  EXPECT_THROW(stopped.score(questions(), [&](std::size_t, const auto&) { ++told; }), Cancelled);
  EXPECT_LT(told, questions().size());
  LikelihoodScorer scorer(model, {});
  const auto refused = [&](const Question& question) {
    return error_of([&] { scorer.score({question}, [](std::size_t, const auto&) {}); });
  };
  EXPECT_NE(refused({{{1}, Ids(65, 1)}}).find("64"), std::string::npos);
  EXPECT_NE(refused({{{1}, {260}}}).find("vocabulary"), std::string::npos);
  EXPECT_NE(refused({{{}, {1}}}).find("without tokens"), std::string::npos);
}

TEST(Greedy, ManyAtATimeAreAsEachAlone) {
  const auto bytes = text::bytes_tokenizer();
  Texts text;
  std::vector<Ids> prompts;
  for (const std::size_t length : {1, 30, 9, 30, 17, 4}) prompts.push_back(text(length));
  for (const char* preset : {"llm-tiny", "moh-llm-tiny"}) {
    const models::Llama model = small_model(preset);
    GreedyGenerator generator(model, *bytes,
                              {.max_tokens = 24, .until = {}, .end_ids = {3}, .rows = 4, .batch = {.tokens = 8}});
    std::vector<std::string> got(prompts.size(), "?");
    generator.generate(prompts, [&](std::size_t i, const std::string& said) { got[i] = said; });
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      Ids alone;
      for (const std::int64_t id : generate::generate(model, prompts[i], 24, {}, {3}).ids) {
        if (id < 256) alone.push_back(id);  // the others are no bytes
      }
      std::string all = bytes->decode(alone);
      EXPECT_EQ(got[i], text::repair_utf8(all)) << preset << ", prompt " << i;
    }
  }
}

TEST(Greedy, EndsBeforeStopStringsInTheirOrder) {
  const auto bytes = text::bytes_tokenizer();
  const models::Llama model = small_model("llm-tiny");
  std::string all;
  const Ids prompt = {65, 66, 67};
  const auto say = [&](std::vector<std::string> until) {
    std::string said;
    GreedyGenerator generator(model, *bytes, {.max_tokens = 20, .until = std::move(until)});
    generator.generate({prompt}, [&](std::size_t, const std::string& text) { said = text; });
    return said;
  };
  all = say({});
  ASSERT_GT(all.size(), 8u);
  const std::string stop = all.substr(5, 2);
  EXPECT_EQ(say({"never said", stop}), all.substr(0, all.find(stop)));
  EXPECT_NE(error_of([&] { GreedyGenerator(model, *bytes, {.max_tokens = 64}); }).find("64"), std::string::npos);
}

}  // namespace
}  // namespace moh::eval
