#include "bench/generation.h"

#include <chrono>
#include <cmath>
#include <random>
#include <string>

#include "moh/base/error.h"
#include "moh/serve/engine.h"

namespace moh::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct Times {
  double first = 0, last = 0;  // seconds from the request to its first and last token
};

class Runs {
 public:
  Runs(models::Llama& model, const GenerationOptions& options, std::int64_t longest)
      : options_(options), vocabulary_(model.config().vocab_size), random_(options.seed) {
    serve::EngineOptions engine;
    engine.max_sequences = 1;
    // What was in front of a test stays in the cache for its repetitions.
    engine.cache_tokens = 2 * (longest + 2 * serve::kPageTokens);
    engine_.emplace(model, engine);
  }

  std::vector<std::int64_t> random_tokens(std::int64_t count) {
    std::uniform_int_distribution<std::int64_t> token(0, vocabulary_ - 1);
    std::vector<std::int64_t> tokens(static_cast<std::size_t>(count));
    for (std::int64_t& each : tokens) each = token(random_);
    return tokens;
  }

  Times run(std::vector<std::int64_t> prompt, std::int64_t count) {
    serve::Request request;
    request.prompt = std::move(prompt);
    request.max_tokens = count;
    request.activated = options_.activated;
    Times times;
    std::string trouble;
    bool ended = false;
    const auto start = Clock::now();
    request.on_token = [&](const serve::Token&) {
      times.last = std::chrono::duration<double>(Clock::now() - start).count();
      if (times.first == 0) times.first = times.last;
      return true;
    };
    request.on_finish = [&](serve::Finish, const std::string& error) {
      ended = true;
      trouble = error;
    };
    engine_->submit(std::move(request));
    while (!ended) engine_->step();
    MOH_CHECK(trouble.empty(), "[bench] ", trouble);
    return times;
  }

 private:
  const GenerationOptions& options_;
  std::int64_t vocabulary_;
  std::mt19937_64 random_;
  std::optional<serve::Engine> engine_;
};

Json row_of(const std::string& test, std::int64_t depth, const std::vector<double>& rates) {
  double sum = 0, squares = 0;
  for (const double rate : rates) sum += rate;
  const double mean = sum / static_cast<double>(rates.size());
  for (const double rate : rates) squares += (rate - mean) * (rate - mean);
  return {{"test", test},
          {"depth", depth},
          {"tokens_per_second", mean},
          {"deviation", rates.size() > 1 ? std::sqrt(squares / static_cast<double>(rates.size() - 1)) : 0.0},
          {"repetitions", rates.size()}};
}

}  // namespace

void time_generation(models::Llama& model, const GenerationOptions& options,
                     const std::function<bool(const Json&)>& on_row) {
  MOH_CHECK(options.repetitions > 0, "[bench] --repetitions must be positive, got ", options.repetitions);
  std::int64_t longest = 0;
  for (const std::int64_t depth : options.depths) {
    MOH_CHECK(depth >= 0, "[bench] --depth must not be negative, got ", depth);
    for (const auto* counts : {&options.prompts, &options.generated}) {
      for (const std::int64_t count : *counts) {
        MOH_CHECK(count > 0, "[bench] --prompt-tokens and --max-tokens must be positive, got ", count);
        longest = std::max(longest, depth + count);
      }
    }
  }
  const std::int64_t context = model.config().max_position_embeddings;
  MOH_CHECK(longest < context, "[bench] ", longest, " tokens do not fit into the model's context of ", context,
            "; choose smaller --depth, --prompt-tokens, --max-tokens");
  Runs runs(model, options, longest);
  runs.run(runs.random_tokens(serve::kPageTokens), 2);  // the first pass finds and warms everything
  const double activated = options.activated.value_or(model.config().activated_share());
  const auto tell = [&](Json row) {
    row["activated"] = activated;
    return on_row(row);
  };
  for (const std::int64_t depth : options.depths) {
    const std::vector<std::int64_t> before = runs.random_tokens(depth);
    if (depth > 0) runs.run(before, 1);
    for (const std::int64_t count : options.prompts) {
      std::vector<double> rates;
      for (std::int64_t i = 0; i < options.repetitions; ++i) {
        std::vector<std::int64_t> prompt = before, own = runs.random_tokens(count);
        prompt.insert(prompt.end(), own.begin(), own.end());
        rates.push_back(static_cast<double>(count) / runs.run(std::move(prompt), 1).first);
      }
      if (!tell(row_of("pp" + std::to_string(count), depth, rates))) return;
    }
    for (const std::int64_t count : options.generated) {
      std::vector<double> rates;
      for (std::int64_t i = 0; i < options.repetitions; ++i) {
        std::vector<std::int64_t> prompt = before;
        prompt.push_back(runs.random_tokens(1)[0]);
        const Times times = runs.run(std::move(prompt), count + 1);
        rates.push_back(static_cast<double>(count) / (times.last - times.first));
      }
      if (!tell(row_of("tg" + std::to_string(count), depth, rates))) return;
    }
  }
}

}  // namespace moh::bench
