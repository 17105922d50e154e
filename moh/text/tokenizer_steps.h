// What a tokenizer.json does with a text before byte-pair encoding: normalizers change it, pre-tokenizers cut it.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "moh/text/regex.h"
#include "moh/text/unicode.h"

namespace moh::text {

// ---- Normalizers

struct NormalFormStep {
  NormalForm form;
};
struct ReplaceStep {
  Regex pattern;
  std::string content;
};
struct PrependStep {  // to a text that is not empty
  std::string text;
};
using NormalizeStep = std::variant<NormalFormStep, ReplaceStep, PrependStep>;

std::string normalize(std::string text, const std::vector<NormalizeStep>& steps, Regex::Scratch& scratch);

// ---- Pre-tokenizers

enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };
struct SplitStep {
  Regex pattern;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;  // the pattern matches what lies between the separators
};
struct PrefixSpaceStep {};  // GPT-2's add_prefix_space
struct MetaspaceStep {      // spaces become `replacement`; one more may be put in front
  enum class Prepend { always, first, never };
  std::string replacement;
  Prepend prepend = Prepend::always;
};
using SplitterStep = std::variant<SplitStep, PrefixSpaceStep, MetaspaceStep>;

// Calls `word` with each piece that the steps, one after the other, leave. `at_start`: the text is the beginning of
// what the user gave.
using WordSink = std::function<void(std::string_view word)>;
void split_words(std::string_view text, bool at_start, const std::vector<SplitterStep>& steps, Regex::Scratch& scratch,
                 const WordSink& word);

}  // namespace moh::text
