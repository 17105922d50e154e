// Greedy text until a stop string, for many prompts at a time.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "moh/eval/batch.h"
#include "moh/eval/likelihood.h"
#include "moh/text/tokenizer.h"
#include "moh/models/llama.h"

namespace moh::eval {

struct GreedyOptions {
  std::int64_t max_tokens = 256;
  std::vector<std::string> until = {};  // the text ends before the first of these, looked for in this order
  Ids end_ids = {};                     // ids that end the text
  std::int64_t rows = 16;          // texts at a time
  BatchOptions batch = {};
};

class GreedyGenerator {
 public:
  // Error: no room for max_tokens in the model's context.
  GreedyGenerator(const models::Llama& model, const text::Tokenizer& tokenizer, GreedyOptions options);

  // A prompt too long for what is to come loses its beginning. Texts are told in an order of their own.
  void generate(const std::vector<Ids>& prompts, const std::function<void(std::size_t, const std::string&)>& done);

  double active_heads() const { return tokens_ > 0 ? active_ / tokens_ : 1.0; }
  double tokens() const { return tokens_; }

 private:
  struct Row;

  std::string text_of(const Ids& ids) const;
  void run(std::vector<Row> rows, const std::function<void(std::size_t, const std::string&)>& done);
  void count(const models::LlamaOutput& output, double tokens);

  const models::Llama& model_;
  const text::Tokenizer& tokenizer_;
  GreedyOptions options_;
  double active_ = 0, tokens_ = 0;
};

}  // namespace moh::eval
