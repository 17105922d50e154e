// NQ-open: questions that people asked a search engine, answered from memory.
#include <algorithm>

#include "moh/eval/python_text.h"
#include "moh/eval/task.h"
#include "moh/text/utf8.h"

namespace moh::eval {
namespace {

// \b(?:The |the |An |A |a |an ) taken out.
std::string without_articles(const std::string& text) {
  std::string rest;
  bool after_word = false;  // whether a word's character stands before, in the text as it was
  for (std::size_t at = 0; at < text.size();) {
    std::size_t article = 0;
    for (const char* word : {"The ", "the ", "An ", "A ", "a ", "an "}) {
      if (article == 0 && text.compare(at, std::string_view(word).size(), word) == 0) {
        article = std::string_view(word).size();
      }
    }
    if (article > 0 && !after_word) {
      at += article;
      continue;  // a space stands before now
    }
    const std::string_view left = std::string_view(text).substr(at);
    const std::size_t size = std::max<std::size_t>(1, text::utf8_length(left));
    after_word = text::utf8_length(left) > 0 && is_word_character(text::utf8_code_point(left.substr(0, size)));
    rest.append(left.substr(0, size));
    at += size;
  }
  return rest;
}

// Case and ASCII punctuation count for nothing either.
std::string normalized(const std::string& text) {
  std::string plain = lower(without_articles(text));
  std::erase_if(plain, [](char c) {
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
  });
  return plain;
}

const RegisteredTask nq_open{
    {.name = "nq_open",
     .version = 4,
     .kind = Kind::kGenerate,
     .metrics = {"exact_match"},
     .split = "validation",
     .files = {"nq_open/NQ-open.*"},
     .evaluation_files = {"nq_open/NQ-open.dev"},
     .read =
         [](const Record& record) {
           Document document;
           document.prompt = "Q: " + record.text("question") + "?\nA:";
           document.targets = record.texts("answer");
           if (document.targets.empty()) record.refuse("`answer` must hold at least one text");
           return document;
         },
     .description = "Answer these questions:\n\n",
     .shots_delimiter = "\n",
     .leaves_document_out = true,
     .until = {"\n", ".", ","},
     .filters = {{"remove_whitespace", [](const std::string& text) { return std::string(strip(text)); }}},
     .matches =
         [](const std::string& text, const std::vector<std::string>& answers) {
           const std::string given = normalized(text);
           return std::any_of(answers.begin(), answers.end(),
                              [&](const std::string& answer) { return normalized(answer) == given; });
         }}};

}  // namespace
}  // namespace moh::eval
