// The engine beside the plain model, and beside itself: what a request gets does not depend on what else runs.
#include "moh/serve/engine.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

namespace {

using namespace moh;
using serve::Engine;
using serve::Finish;
using serve::Request;

models::Llama tiny_model(const std::string& router, const std::string& select = "head", bool windows = false) {
  models::LlamaConfig config;
  config.vocab_size = 96;
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 8;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.max_position_embeddings = 512;
  config.initializer_range = 0.3;
  config.bos_token_id = 1;
  if (windows) config.windows = {0, 40};
  if (!router.empty()) {
    config.moh =
        models::make_moh_config(2, 8, 0.5, std::nullopt, std::nullopt, router.c_str(), select == "kv-group" ? 4 : 1);
    config.moh->select = select == "kv-group" ? layers::SelectBy::kKvGroup : layers::SelectBy::kHead;
  }
  return models::Llama::initialize(config, 5);
}

struct Result {
  std::vector<std::int64_t> ids, prompt;
  std::vector<double> logprobs;
  std::optional<Finish> finish;
  bool operator==(const Result&) const = default;
};

// `watch`: told of every token.
Request request_of(std::vector<std::int64_t> prompt, std::int64_t max_tokens, Result& result,
                   const text::SamplingOptions& sampling = {}) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling = sampling;
  request.top_logprobs = 0;
  request.on_token = [&result](const serve::Token& token) {
    (token.of_prompt ? result.prompt : result.ids).push_back(token.id);
    result.logprobs.push_back(token.logprob.value_or(0));
    return true;
  };
  request.on_finish = [&result](Finish how, const std::string&) { result.finish = how; };
  return request;
}

std::vector<std::int64_t> random_prompt(std::mt19937& random, std::int64_t size) {
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < size; ++i) ids.push_back(static_cast<std::int64_t>(random() % 96));
  return ids;
}

void run(Engine& engine) {
  while (engine.step()) {
  }
}

TEST(Engine, GivesTheModelsOwnLogProbabilities) {
  for (const bool windows : {false, true}) {
    models::Llama plain = tiny_model("two-stage", "head", windows), served = tiny_model("two-stage", "head", windows);
    Engine engine(served, {.cache_tokens = 1024, .step_tokens = 64});
    std::mt19937 random(1);
    Result result;
    const auto prompt = random_prompt(random, 150);
    Request request = request_of(prompt, 20, result);
    request.echo = true;
    engine.submit(request);
    run(engine);
    ASSERT_EQ(result.ids.size(), 20U);
    EXPECT_EQ(result.prompt, prompt);
    EXPECT_EQ(result.finish, Finish::kLength);
    std::vector<std::int64_t> all = prompt;
    all.insert(all.end(), result.ids.begin(), result.ids.end());
    const at::Tensor ids = at::tensor(all, at::TensorOptions(at::kLong)).unsqueeze(0);
    const at::Tensor logprobs = at::log_softmax(plain.forward({.ids = ids}).logits[0].to(at::kDouble), -1);
    for (std::size_t i = 1; i < all.size(); ++i) {
      const at::Tensor row = logprobs[static_cast<std::int64_t>(i) - 1];
      EXPECT_NEAR(result.logprobs[i], row[all[i]].item<double>(), 1e-4) << i;
      if (i >= prompt.size()) {
        EXPECT_GE(row[all[i]].item<double>(), row.max().item<double>() - 1e-4);  // greedy
      }
    }
  }
}

// Mixed lengths, seeds and shares, some cancelled, with hardly room for two of them: every result equals that of the
// request alone in an engine of its own, to the bit.
TEST(Engine, ResultsDoNotDependOnWhatElseRuns) {
  const int threads = at::get_num_threads();
  for (const auto& [router, select] :
       std::map<std::string, std::string>{{"two-stage", "head"}, {"norm", "kv-group"}, {"", ""}}) {
    std::mt19937 random(7);
    struct Wanted {
      std::vector<std::int64_t> prompt;
      std::int64_t max_tokens;
      text::SamplingOptions sampling;
      std::optional<double> activated;
      bool echo, cancelled;
    };
    std::vector<Wanted> wanted;
    const auto shared_beginning = random_prompt(random, 130);
    for (int i = 0; i < 12; ++i) {
      Wanted each;
      each.prompt = random_prompt(random, 1 + random() % 140);
      if (i % 3 == 0) each.prompt.insert(each.prompt.begin(), shared_beginning.begin(), shared_beginning.end());
      each.max_tokens = static_cast<std::int64_t>(random() % 24);
      each.sampling = {.temperature = i % 2 == 0 ? 0.0 : 0.9, .top_p = 0.95, .seed = random()};
      if (!router.empty() && i % 4 == 1) each.activated = 0.75;
      each.echo = i % 5 == 0;
      each.cancelled = i % 6 == 5;
      wanted.push_back(each);
    }
    const auto make = [&](const Wanted& each, Result& result) {
      Request request = request_of(each.prompt, each.max_tokens, result, each.sampling);
      request.activated = each.activated;
      request.echo = each.echo;
      return request;
    };
    std::vector<Result> alone(wanted.size()), together(wanted.size());
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      models::Llama model = tiny_model(router, select);
      Engine engine(model, {.cache_tokens = 512});
      engine.submit(make(wanted[i], alone[i]));
      run(engine);
    }
    for (const int count : {1, 2}) {
      if (count == 2 && router != "norm") continue;  // once is enough for threads
      at::set_num_threads(count);
      models::Llama model = tiny_model(router, select);
      Engine engine(model, {.max_sequences = 8, .cache_tokens = 320, .step_tokens = 100});
      std::vector<std::int64_t> numbers;
      together.assign(wanted.size(), {});
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        numbers.push_back(engine.submit(make(wanted[i], together[i])));
        for (int steps = static_cast<int>(i % 4); steps > 0; --steps) engine.step();
        if (wanted[i].cancelled) engine.cancel(numbers.back());
      }
      run(engine);
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        if (wanted[i].cancelled && together[i].finish == Finish::kCancelled) continue;
        EXPECT_EQ(together[i], alone[i]) << "request " << i << " router " << router << " threads " << count;
      }
      EXPECT_EQ(engine.state().used_pages, 0);
      EXPECT_EQ(engine.state().running + engine.state().waiting, 0);
      EXPECT_GT(engine.state().preemptions, 0);
      EXPECT_GT(engine.state().cached_tokens, 0);
    }
    at::set_num_threads(threads);
  }
}

TEST(Engine, TheBeginningOfAPromptIsComputedOnce) {
  models::Llama model = tiny_model("two-stage");
  Engine engine(model, {.cache_tokens = 1024});
  std::mt19937 random(3);
  const auto prompt = random_prompt(random, 200);
  Result first, second;
  engine.submit(request_of(prompt, 5, first));
  run(engine);
  const auto before = engine.state().prompt_tokens;
  engine.submit(request_of(prompt, 5, second));
  run(engine);
  EXPECT_EQ(first, second);
  EXPECT_EQ(engine.state().cached_tokens, 192);  // three pages
  EXPECT_EQ(engine.state().prompt_tokens - before, 8);
}

TEST(Engine, EndsWhereItIsTold) {
  models::Llama model = tiny_model("");
  Engine engine(model, {.cache_tokens = 512});
  std::mt19937 random(9);
  const auto prompt = random_prompt(random, 12);
  Result free, ended, stopped, none, full;
  engine.submit(request_of(prompt, 10, free));
  run(engine);
  Request request = request_of(prompt, 10, ended);
  request.end_ids = {free.ids[4]};
  engine.submit(request);
  request = request_of(prompt, 10, stopped);
  request.on_token = [&stopped](const serve::Token& token) {
    stopped.ids.push_back(token.id);
    return stopped.ids.size() < 3;
  };
  engine.submit(request);
  engine.submit(request_of(prompt, 0, none));
  engine.submit(request_of(random_prompt(random, 500), 1000, full));
  run(engine);
  EXPECT_EQ(ended.finish, Finish::kStop);
  EXPECT_EQ(std::count(ended.ids.begin(), ended.ids.end(), free.ids[4]), 0);
  EXPECT_EQ(stopped.finish, Finish::kStop);
  EXPECT_EQ(stopped.ids.size(), 3U);
  EXPECT_EQ(none.finish, Finish::kLength);
  EXPECT_TRUE(none.ids.empty());
  EXPECT_EQ(full.finish, Finish::kLength);
  EXPECT_EQ(full.ids.size(), 12U);  // the model's context is 512
}

TEST(Engine, SaysWhatIsWrongWithARequest) {
  models::Llama model = tiny_model("");
  Engine engine(model, {.cache_tokens = 512});
  Result result;
  const auto message = [&](Request request) -> std::string {
    try {
      engine.submit(std::move(request));
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message(request_of({}, 1, result)).find("empty"), std::string::npos);
  const std::string too_long = message(request_of(std::vector<std::int64_t>(600, 1), 1, result));
  EXPECT_NE(too_long.find("600"), std::string::npos);
  EXPECT_NE(too_long.find("512"), std::string::npos);
  EXPECT_NE(message(request_of({96}, 1, result)).find("vocabulary of 96"), std::string::npos);
  Request dense = request_of({1}, 1, result);
  dense.activated = 0.5;
  EXPECT_NE(message(dense).find("dense"), std::string::npos);
  EXPECT_FALSE(engine.step());
}

}  // namespace
