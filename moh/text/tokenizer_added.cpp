#include "moh/text/tokenizer_added.h"

#include <algorithm>
#include <utility>

#include "moh/text/unicode.h"
#include "moh/text/utf8.h"

namespace moh::text {
namespace {

// Begin of the last character of `text`.
std::size_t last_character(std::string_view text) {
  std::size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
  return at;
}

bool starts_with_word(std::string_view text) {
  return !text.empty() && is_word(utf8_code_point(text.substr(0, utf8_length(text))));
}
bool ends_with_word(std::string_view text) {
  return !text.empty() && is_word(utf8_code_point(text.substr(last_character(text))));
}

std::size_t trailing_space_begin(std::string_view text) {
  while (!text.empty()) {
    const std::size_t at = last_character(text);
    if (!is_white_space(utf8_code_point(text.substr(at)))) break;
    text = text.substr(0, at);
  }
  return text.size();
}
std::size_t leading_space_size(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const std::string_view character = text.substr(at, utf8_length(text.substr(at)));
    if (!is_white_space(utf8_code_point(character))) break;
    at += character.size();
  }
  return at;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  for (const AddedToken& token : tokens_) starts_[static_cast<unsigned char>(token.content.front())] = true;
}

// Narrows the sorted tokens byte by byte to those that begin as `rest` does.
const AddedToken* AddedTokens::longest_at(std::string_view rest) const {
  auto low = tokens_.begin(), high = tokens_.end();
  const AddedToken* best = nullptr;
  for (std::size_t depth = 0; low != high; ++depth) {
    if (low->content.size() == depth) best = &*low++;
    while (low != high && low->content.size() == depth) ++low;  // the same content again
    if (depth == rest.size()) break;
    const auto byte = static_cast<unsigned char>(rest[depth]);
    const auto at = [depth](const AddedToken& token) { return static_cast<unsigned char>(token.content[depth]); };
    low = std::partition_point(low, high, [&](const AddedToken& token) { return at(token) < byte; });
    high = std::partition_point(low, high, [&](const AddedToken& token) { return at(token) <= byte; });
  }
  return best;
}

std::optional<AddedTokens::Match> AddedTokens::find(std::string_view text, std::size_t from, bool parse_special) const {
  for (std::size_t at = from; at < text.size(); ++at) {
    if (!starts_[static_cast<unsigned char>(text[at])]) continue;
    const AddedToken* token = longest_at(text.substr(at));
    if (token == nullptr) continue;
    std::size_t begin = at, end = at + token->content.size();
    const bool passed_over =
        (token->special && !parse_special) ||
        (token->single_word && (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end))));
    if (passed_over) {
      at = end - 1;
      continue;
    }
    if (token->lstrip) begin = from + trailing_space_begin(text.substr(from, begin - from));
    if (token->rstrip) end += leading_space_size(text.substr(end));
    return Match{begin, end, token->id};
  }
  return std::nullopt;
}

}  // namespace moh::text
