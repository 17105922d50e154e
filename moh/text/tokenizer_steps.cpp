#include "moh/text/tokenizer_steps.h"

#include <utility>

#include "moh/base/error.h"

namespace moh::text {
namespace {

// Replacements of replacements grow without bounds in a file that means harm; real ones at most double a text, and
// decompositions make eleven times as many bytes of one character.
std::size_t growth_limit(std::size_t size) { return 4096 + 64 * size; }

void check_growth(std::size_t size, std::size_t limit) {
  MOH_CHECK(size <= limit, "[tokenizer] the normalizers of tokenizer.json make more than ", limit,
            " bytes of a text, expected at most 64 times its size");
}

std::string replace_all(const std::string& text, const Regex& pattern, std::string_view content, std::size_t limit,
                        Regex::Scratch& scratch) {
  std::string result;
  std::size_t copied = 0;
  for (std::size_t at = 0; at <= text.size();) {
    const auto found = pattern.find(text, at, scratch);
    if (!found) break;
    const auto [begin, end] = *found;
    check_growth(result.size() + begin - copied + content.size(), limit);
    result.append(text, copied, begin - copied);
    result += content;
    copied = end;
    at = end;
    if (begin == end) {  // an empty match: on to the next character
      if (at == text.size()) break;
      ++at;
      while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) ++at;
    }
  }
  result.append(text, copied, std::string::npos);
  return result;
}

// One piece of a text: what the pattern matched, or what lies between two matches.
struct Piece {
  std::size_t begin, end;
  bool matched;
};

// Joins the pieces of one text as the behavior says, and hands them on. Pieces come in order and cover the text.
class Joiner {
 public:
  using Emit = std::function<void(std::size_t begin, std::size_t end)>;
  Joiner(SplitBehavior behavior, const Emit& emit) : behavior_(behavior), emit_(emit) {}

  void add(const Piece& piece) {
    if (piece.begin == piece.end) return;
    switch (behavior_) {
      case SplitBehavior::isolated:
        return emit_(piece.begin, piece.end);
      case SplitBehavior::removed:
        if (!piece.matched) emit_(piece.begin, piece.end);
        return;
      case SplitBehavior::contiguous:
        return grow_if(is_open_ && open_.matched == piece.matched, piece);
      case SplitBehavior::merged_with_previous:  // a separator ends the piece before it
        return grow_if(is_open_ && piece.matched && !open_.matched, piece);
      case SplitBehavior::merged_with_next:  // a separator begins the piece after it
        return grow_if(is_open_ && open_.matched && !piece.matched, piece);
    }
  }
  void finish() {
    if (is_open_) emit_(open_.begin, open_.end);
    is_open_ = false;
  }

 private:
  void grow_if(bool grows, const Piece& piece) {
    if (grows) {
      open_.end = piece.end;
      open_.matched = piece.matched;  // of two separators in a row only the one that touches the piece joins it
    } else {
      finish();
      open_ = piece;
      is_open_ = true;
    }
  }

  SplitBehavior behavior_;
  const Emit& emit_;
  Piece open_ = {};
  bool is_open_ = false;
};

class Splitter {
 public:
  Splitter(const std::vector<SplitterStep>& steps, Regex::Scratch& scratch, const WordSink& word)
      : steps_(steps), scratch_(scratch), word_(word) {}

  void run(std::string_view text, std::size_t step, bool at_start) {
    if (text.empty()) return;
    if (step == steps_.size()) return word_(text);
    std::visit([&](const auto& kind) { apply(kind, text, step + 1, at_start); }, steps_[step]);
  }

 private:
  void apply(const SplitStep& split, std::string_view text, std::size_t next, bool at_start) {
    const Joiner::Emit emit = [&](std::size_t begin, std::size_t end) {
      run(text.substr(begin, end - begin), next, at_start && begin == 0);
    };
    Joiner joiner(split.behavior, emit);
    std::size_t done = 0;
    for (std::size_t at = 0; at < text.size();) {
      const auto found = split.pattern.find(text, at, scratch_);
      if (!found) break;
      const auto [begin, end] = *found;
      if (begin == end) {  // an empty match separates
        joiner.add({done, begin, split.invert});
        done = begin;
        at = begin + 1;
        while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) ++at;
        continue;
      }
      joiner.add({done, begin, split.invert});
      joiner.add({begin, end, !split.invert});
      done = at = end;
    }
    joiner.add({done, text.size(), split.invert});
    joiner.finish();
  }

  void apply(const PrefixSpaceStep&, std::string_view text, std::size_t next, bool at_start) {
    if (text.front() == ' ') return run(text, next, at_start);
    run(std::string(1, ' ').append(text), next, at_start);
  }

  void apply(const MetaspaceStep& metaspace, std::string_view text, std::size_t next, bool at_start) {
    std::string changed;
    const std::string& mark = metaspace.replacement;
    for (const char c : text) c == ' ' ? changed += mark : changed += c;
    using Prepend = MetaspaceStep::Prepend;
    const bool prepends = metaspace.prepend == Prepend::always || (metaspace.prepend == Prepend::first && at_start);
    if (prepends && !changed.starts_with(mark)) changed.insert(0, mark);
    run(changed, next, at_start);
  }

  const std::vector<SplitterStep>& steps_;
  Regex::Scratch& scratch_;
  const WordSink& word_;
};

}  // namespace

std::string normalize(std::string text, const std::vector<NormalizeStep>& steps, Regex::Scratch& scratch) {
  const std::size_t limit = growth_limit(text.size());
  for (const NormalizeStep& step : steps) {
    if (const auto* form = std::get_if<NormalFormStep>(&step)) {
      text = normalize(text, form->form);
    } else if (const auto* replace = std::get_if<ReplaceStep>(&step)) {
      text = replace_all(text, replace->pattern, replace->content, limit, scratch);
    } else if (!text.empty()) {
      text.insert(0, std::get<PrependStep>(step).text);
    }
    check_growth(text.size(), limit);
  }
  return text;
}

void split_words(std::string_view text, bool at_start, const std::vector<SplitterStep>& steps, Regex::Scratch& scratch,
                 const WordSink& word) {
  Splitter(steps, scratch, word).run(text, 0, at_start);
}

}  // namespace moh::text
