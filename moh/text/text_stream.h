// The text of a running generation: whole characters, ended by stop strings, handed on as early as can be.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "moh/text/tokenizer.h"
#include "moh/text/utf8.h"

namespace moh::text {

// Takes the bytes of token after token and gives the text that is certain: a character is kept back until it is whole,
// and what may be the beginning of a stop string until it is known. What comes out does not depend on where tokens end:
// the stop string that is complete first ends the text before itself.
class TextStream {
 public:
  // `drops_leading_space`: the text begins with a space that is SentencePiece's own. Error: an empty stop string.
  explicit TextStream(std::vector<std::string> stops, bool drops_leading_space = false);

  std::string push(std::string_view bytes);
  std::string finish();  // what was kept back; U+FFFD for a character that never ended
  bool stopped() const { return stopped_; }

 private:
  std::string release();
  std::vector<std::string> stops_;
  bool drops_leading_space_ = false, stopped_ = false;
  Utf8Stream characters_;
  std::string held_;  // begins as a stop string does
};

// The ids of a prompt. It begins with exactly one BOS token where the tokenizer adds one, or the text begins with it
// already (chat templates write it out). `bos` is the model's, -1: it has none.
std::vector<std::int64_t> prompt_ids(const Tokenizer& tokenizer, std::string_view text, std::int64_t bos,
                                     bool parse_special);

}  // namespace moh::text
