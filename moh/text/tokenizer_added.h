// Tokens that are looked for in the text before anything else: special ones, and words that a user added.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moh::text {

struct AddedToken {
  std::string content;
  std::int32_t id = 0;
  bool special = false;
  bool normalized = false;              // looked for after the normalizer, else before it
  bool single_word = false;             // only where no letter or digit touches it
  bool lstrip = false, rstrip = false;  // takes the white space on that side with it
};

// Finds the longest of a set of tokens, from the left.
class AddedTokens {
 public:
  AddedTokens() = default;
  explicit AddedTokens(std::vector<AddedToken> tokens);

  struct Match {
    std::size_t begin = 0, end = 0;
    std::int32_t id = 0;
  };
  bool empty() const { return tokens_.empty(); }
  // First match at or after `from`. Special tokens are passed over, as whole words, unless `parse_special`.
  std::optional<Match> find(std::string_view text, std::size_t from, bool parse_special) const;

 private:
  const AddedToken* longest_at(std::string_view rest) const;
  std::vector<AddedToken> tokens_;     // sorted by content
  std::array<bool, 256> starts_ = {};  // first bytes
};

}  // namespace moh::text
