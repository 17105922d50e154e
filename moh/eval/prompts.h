// What stands before a document's answer: the task's description, examples, the question; and its tokens.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "moh/eval/likelihood.h"
#include "moh/eval/python_random.h"
#include "moh/eval/task.h"
#include "moh/text/tokenizer.h"

namespace moh::eval {

// Examples are drawn by random.Random(1234), which goes on from document to document.
class PromptBuilder {
 public:
  // `pool` may be empty if `shots` is 0. Error: fewer examples than shots.
  PromptBuilder(const Task& task, int shots, const std::vector<Document>& pool);
  // Description and examples for the next document, in order.
  std::string examples(const Document& document);

 private:
  std::string example(const Document& document) const;

  const Task& task_;
  std::size_t shots_;
  const std::vector<Document>& pool_;
  PythonRandom random_;
};

// Texts that the model is asked to score, a context and what follows it, or (kGenerate) a context alone.
std::vector<std::pair<std::string, std::string>> requests(const Task& task, const Document& document,
                                                          const std::string& examples);

class PromptTokenizer {
 public:
  // `bos`: the model's, where the tokenizer has none of its own.
  PromptTokenizer(const text::Tokenizer& tokenizer, std::int64_t bos);
  // With BOS in front if the tokenizer says so and the text does not begin with it. Special tokens in the text are
  // read.
  Ids encode(const std::string& text) const;
  // White space at the end of the context goes to the continuation; both are encoded as one text, and the context's
  // own tokens are counted off. An empty context is BOS, or EOS where there is none.
  Continuation encode_pair(std::string context, std::string continuation) const;
  bool adds_bos() const { return adds_bos_; }
  const text::Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  const text::Tokenizer& tokenizer_;
  std::int64_t bos_;
  bool adds_bos_;
};

}  // namespace moh::eval
