#include "moh/eval/prompts.h"

#include "moh/base/error.h"
#include "moh/eval/python_text.h"

namespace moh::eval {
namespace {

constexpr std::uint32_t kSeed = 1234;

}  // namespace

PromptBuilder::PromptBuilder(const Task& task, int shots, const std::vector<Document>& pool)
    : task_(task), shots_(static_cast<std::size_t>(shots)), pool_(pool), random_(kSeed) {
  const std::size_t drawn = shots_ + (shots_ > 0 && task.leaves_document_out ? 1 : 0);
  MOH_CHECK(drawn <= pool.size(), "[eval] ", task.name, ": ", shots_, " examples of the ", task.shots_split,
            " split are asked for", task.leaves_document_out ? ", which draws one more," : "", " and it has ",
            pool.size());
}

std::string PromptBuilder::example(const Document& document) const {
  std::string question, answer;
  switch (task_.kind) {
    case Kind::kChoices:
      question = document.prompt;
      answer = document.choices[static_cast<std::size_t>(document.gold)];
      break;
    case Kind::kContexts:
      question = document.choices[static_cast<std::size_t>(document.gold)];
      answer = document.targets[0];
      break;
    default:
      question = document.prompt;
      answer = document.targets[0];
  }
  if (answer.empty() && task_.kind != Kind::kChoices) return question;
  return question + task_.target_delimiter + answer + task_.shots_delimiter;
}

std::string PromptBuilder::examples(const Document& document) {
  std::string text = task_.description;
  if (shots_ == 0) return text;
  std::vector<const Document*> chosen;
  if (task_.first_shots) {
    for (std::size_t i = 0; i < shots_; ++i) chosen.push_back(&pool_[i]);
  } else {
    const auto is_other = [&](const Document& other) {
      return !task_.leaves_document_out || other.record != document.record;
    };
    for (const std::size_t i : random_.sample(pool_.size(), shots_ + (task_.leaves_document_out ? 1 : 0))) {
      if (chosen.size() < shots_ && is_other(pool_[i])) chosen.push_back(&pool_[i]);
    }
    if (chosen.size() < shots_) {  // the pool holds the document more than once
      std::vector<const Document*> others;
      for (const Document& other : pool_) {
        if (is_other(other)) others.push_back(&other);
      }
      MOH_CHECK(others.size() >= shots_, "[eval] ", task_.name, ": the ", task_.shots_split, " split has only ",
                others.size(), " examples that are not the document itself");
      chosen.clear();
      for (const std::size_t i : random_.sample(others.size(), shots_)) chosen.push_back(others[i]);
    }
  }
  for (const Document* shot : chosen) text += example(*shot);
  return text;
}

std::vector<std::pair<std::string, std::string>> requests(const Task& task, const Document& document,
                                                          const std::string& examples) {
  std::vector<std::pair<std::string, std::string>> list;
  switch (task.kind) {
    case Kind::kChoices:
      for (const std::string& choice : document.choices) {
        list.emplace_back(examples + document.prompt, task.target_delimiter + choice);
      }
      break;
    case Kind::kContexts:
      for (const std::string& context : document.choices) {
        list.emplace_back(examples + context, task.target_delimiter + document.targets[0]);
      }
      break;
    case Kind::kLogLikelihood:
      list.emplace_back(examples + document.prompt, document.targets[0]);
      break;
    case Kind::kGenerate:
      list.emplace_back(examples + document.prompt, "");
  }
  return list;
}

PromptTokenizer::PromptTokenizer(const text::Tokenizer& tokenizer, std::int64_t bos)
    : tokenizer_(tokenizer),
      bos_(tokenizer.bos_id() >= 0 || tokenizer.kind() != "bytes" ? tokenizer.bos_id() : bos),
      adds_bos_((tokenizer.kind() == "bytes" || tokenizer.adds_bos()) && bos_ >= 0) {}

Ids PromptTokenizer::encode(const std::string& text) const {
  Ids ids = tokenizer_.encode(text, true);
  if (adds_bos_ && (ids.empty() || ids[0] != bos_)) ids.insert(ids.begin(), bos_);
  return ids;
}

Continuation PromptTokenizer::encode_pair(std::string context, std::string continuation) const {
  if (context.empty()) {
    Ids ids = tokenizer_.encode(continuation, true);
    const std::int64_t start = bos_ >= 0 ? bos_ : tokenizer_.eos_id();
    MOH_CHECK(start >= 0 && !ids.empty(),
              "[eval] an empty context needs a BOS or EOS token, which the tokenizer lacks");
    if (ids[0] != start) return {{start}, std::move(ids)};
    return {{start}, Ids(ids.begin() + 1, ids.end())};
  }
  const std::size_t kept = rstrip(context).size();
  continuation = context.substr(kept) + continuation;
  context.resize(kept);
  Ids whole = encode(context + continuation), before = encode(context);
  MOH_CHECK(whole.size() > before.size() && !before.empty(), "[eval] `", continuation.substr(0, 60),
            "` adds no tokens to its context of ", before.size(), ", or there is no context: it cannot be scored");
  Ids rest(whole.begin() + static_cast<std::ptrdiff_t>(before.size()), whole.end());
  return {std::move(before), std::move(rest)};
}

}  // namespace moh::eval
