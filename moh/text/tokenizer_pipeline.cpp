#include "moh/text/tokenizer_pipeline.h"

#include <algorithm>
#include <utility>

#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/io/name_text.h"
#include "moh/text/space_mark.h"
#include "moh/text/utf8.h"

namespace moh::text {
namespace {

constexpr std::string_view kMark = kSpaceMark;
constexpr std::size_t kMaxAddedBytes = 1024;  // a text that repeats a token's beginning takes as many steps a byte
constexpr double kReported = 1 << 20;  // bytes

// Where no token has the mark after another character, no merge reaches from a word into the next one, so that a text
// that no pre-tokenizer cuts may still be cut before marks.
bool no_token_reaches_over_a_mark(const Bpe& bpe) {
  for (const std::string& token : bpe.tokens()) {
    for (std::size_t at = token.find(kMark); at != std::string::npos; at = token.find(kMark, at + kMark.size())) {
      const bool follows_mark = at >= kMark.size() && token.compare(at - kMark.size(), kMark.size(), kMark) == 0;
      if (at > 0 && !follows_mark) return false;
    }
  }
  return bpe.id_of(kMark) != Bpe::kNone;
}

// "<0x0A>" -> 10; -1: not a byte token.
int byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

}  // namespace

struct PipelineTokenizer::Work {
  Regex::Scratch regex;
  WordCache cache;
  std::vector<std::int32_t> word;
  std::vector<std::int64_t> ids;
  ActivityCount* count = nullptr;  // bytes of the text
};

PipelineTokenizer::PipelineTokenizer(TokenizerParts parts) : parts_(std::move(parts)) {
  const auto& tokens = parts_.bpe->tokens();
  std::size_t size = tokens.size();
  for (const AddedToken& token : parts_.added) size = std::max(size, static_cast<std::size_t>(token.id) + 1);
  pieces_.resize(size);
  const auto shown = [&](const std::string& token) { return parts_.metaspace ? spaces_for_marks(token) : token; };
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    const int byte = parts_.byte_tokens ? byte_of_token(tokens[id]) : -1;
    pieces_[id] = byte >= 0 ? std::string(1, static_cast<char>(byte)) : shown(tokens[id]);
  }
  for (const auto& [id, token] : parts_.decode_only) pieces_[static_cast<std::size_t>(id)] = token;
  std::vector<AddedToken> before, after;
  Regex::Scratch scratch;
  for (AddedToken token : parts_.added) {
    const auto id = static_cast<std::size_t>(token.id);
    if (token.normalized) token.content = normalize(std::move(token.content), parts_.normalizers, scratch);
    MOH_CHECK(token.content.size() <= kMaxAddedBytes, parts_.place, "added token `",
              io::one_line(token.content.substr(0, 40)), "...` has ", token.content.size(), " bytes, expected at most ",
              kMaxAddedBytes);
    pieces_[id] = token.special ? "" : shown(token.content);
    if (token.normalized) {
      after.push_back(std::move(token));
    } else {
      before.push_back(std::move(token));
    }
  }
  before_ = AddedTokens(std::move(before));
  after_ = AddedTokens(std::move(after));
  cuts_before_mark_ = !parts_.bpe->options().byte_level && !parts_.bpe->options().ignore_merges &&
                      no_token_reaches_over_a_mark(*parts_.bpe);
}

PipelineTokenizer::~PipelineTokenizer() = default;

std::unique_ptr<PipelineTokenizer::Work> PipelineTokenizer::take_work() const {
  const std::lock_guard lock(mutex_);
  if (idle_.empty()) return std::make_unique<Work>();
  std::unique_ptr<Work> work = std::move(idle_.back());
  idle_.pop_back();
  return work;
}

std::vector<std::int64_t> PipelineTokenizer::encode(std::string_view text, bool parse_special) const {
  std::string repaired;
  if (!is_utf8(text)) text = repaired = repair_utf8(text);
  std::unique_ptr<Work> work = take_work();
  work->ids.clear();
  ActivityCount count("tokenizing", static_cast<double>(text.size()), "bytes", kReported);
  work->count = &count;
  std::size_t done = 0;
  while (!before_.empty()) {
    const auto match = before_.find(text, done, parse_special);
    if (!match) break;
    encode_part(text.substr(done, match->begin - done), done == 0, parse_special, *work);
    work->ids.push_back(match->id);
    done = match->end;
  }
  encode_part(text.substr(done), done == 0, parse_special, *work);
  count.end();
  std::vector<std::int64_t> ids = std::move(work->ids);
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(work));
  return ids;
}

void PipelineTokenizer::encode_part(std::string_view text, bool at_start, bool parse_special, Work& work) const {
  if (text.empty()) return;
  std::string changed;
  if (!parts_.normalizers.empty()) text = changed = normalize(std::string(text), parts_.normalizers, work.regex);
  const WordSink word = [&](std::string_view piece) { encode_word(piece, work); };
  std::size_t done = 0;
  while (!after_.empty()) {
    const auto match = after_.find(text, done, parse_special);
    if (!match) break;
    split_words(text.substr(done, match->begin - done), at_start && done == 0, parts_.splitters, work.regex, word);
    work.ids.push_back(match->id);
    done = match->end;
  }
  split_words(text.substr(done), at_start && done == 0, parts_.splitters, work.regex, word);
}

void PipelineTokenizer::encode_word(std::string_view word, Work& work) const {
  work.count->add(static_cast<double>(word.size()));
  if (!cuts_before_mark_) return encode_cached(word, work);
  while (!word.empty()) {
    std::size_t at = 0;
    while (word.substr(at).starts_with(kMark)) at += kMark.size();
    const std::size_t end = std::min(word.find(kMark, at), word.size());
    encode_cached(word.substr(0, end), work);
    word.remove_prefix(end);
  }
}

void PipelineTokenizer::encode_cached(std::string_view word, Work& work) const {
  std::size_t count = 0;
  if (const std::int32_t* ids = work.cache.find(word, count)) {
    work.ids.insert(work.ids.end(), ids, ids + count);
    return;
  }
  parts_.bpe->encode(word, work.word);
  work.cache.insert(word, work.word.data(), work.word.size());
  work.ids.insert(work.ids.end(), work.word.begin(), work.word.end());
}

std::string PipelineTokenizer::piece_bytes(std::int64_t id) const {
  MOH_CHECK(id >= 0, parts_.place, "id ", id, " is less than 0");
  return id < vocab_size() ? pieces_[static_cast<std::size_t>(id)] : "";
}

std::string PipelineTokenizer::decode(const std::vector<std::int64_t>& ids) const {
  std::string text;
  for (const std::int64_t id : ids) text += piece_bytes(id);
  if (parts_.strips_leading_space && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

}  // namespace moh::text
