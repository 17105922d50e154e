// A tokenizer made of parts: added tokens, normalizers, pre-tokenizers, byte-pair encoding. Files of every kind
// (tokenizer.json, tiktoken ranks, vocab.json + merges.txt) are read into these parts.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moh/base/fields.h"
#include "moh/text/tokenizer.h"
#include "moh/text/tokenizer_added.h"
#include "moh/text/tokenizer_bpe.h"
#include "moh/text/tokenizer_steps.h"

namespace moh::text {

struct TokenizerParts {
  std::string kind, place;  // place: "[tokenizer] FILE: ", the beginning of errors
  std::unique_ptr<Bpe> bpe;
  std::vector<AddedToken> added;
  std::vector<std::pair<std::int32_t, std::string>> decode_only;  // tokens of the vocabulary that no text gives
  std::vector<NormalizeStep> normalizers;
  std::vector<SplitterStep> splitters;
  std::int64_t bos_id = -1, eos_id = -1;
  bool adds_bos = false;
  bool byte_tokens = false;           // <0xNN> is decoded as a byte
  bool metaspace = false;             // tokens write a space as U+2581
  bool strips_leading_space = false;  // the decoder removes one space from the front of a text
};

class PipelineTokenizer : public Tokenizer {
 public:
  explicit PipelineTokenizer(TokenizerParts parts);
  ~PipelineTokenizer() override;

  std::vector<std::int64_t> encode(std::string_view text, bool parse_special) const override;
  std::string decode(const std::vector<std::int64_t>& ids) const override;
  std::string piece_bytes(std::int64_t id) const override;
  std::int64_t vocab_size() const override { return static_cast<std::int64_t>(pieces_.size()); }
  std::int64_t bos_id() const override { return parts_.bos_id; }
  std::int64_t eos_id() const override { return parts_.eos_id; }
  bool adds_bos() const override { return parts_.adds_bos; }
  bool strips_leading_space() const override { return parts_.strips_leading_space; }
  std::string kind() const override { return parts_.kind; }

 private:
  struct Work;  // what one thread needs while it encodes
  std::unique_ptr<Work> take_work() const;
  void encode_part(std::string_view text, bool at_start, bool parse_special, Work& work) const;
  void encode_word(std::string_view word, Work& work) const;
  void encode_cached(std::string_view word, Work& work) const;

  TokenizerParts parts_;
  AddedTokens before_, after_;  // looked for before and after the normalizers
  std::vector<std::string> pieces_;
  bool cuts_before_mark_ = false;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Work>> idle_;
};

// What tokenizer_config.json adds to the tokenizer's own file.
struct TokenizerConfig {
  std::string bos_token, eos_token, tokenizer_class;  // "": not said
  std::optional<bool> add_bos_token;
  bool legacy = false, add_prefix_space = true;  // of SentencePiece models (tokenizer_sentencepiece.h)
  std::vector<AddedToken> added;                 // added_tokens_decoder
  std::vector<std::string> special_tokens;       // that the file names as special, or as BOS, EOS ...
};
TokenizerConfig read_tokenizer_config(std::string_view content, const std::string& label);
void apply_tokenizer_config(const TokenizerConfig& config, TokenizerParts& parts);
// Adds the tokens of added_tokens.json, an object of tokens and ids, that the configuration does not have. Special are
// those that it names so; all of them where it names none, which is the safe reading.
void read_added_tokens_json(std::string_view content, const std::string& label, TokenizerConfig& config);
// Of tokens with the same content the first one counts. `replaces`: a token with the id of another takes its place.
void add_tokens(const std::vector<AddedToken>& from, bool replaces, std::vector<AddedToken>& to);

// Readers of the files; `label` names the file in errors.
constexpr int kTokenizerJsonDepth = 16;
bool is_bpe(const Json& tokenizer_json);
TokenizerParts parts_of_tokenizer_json(const Json& root, const std::string& label);
TokenizerParts parts_of_tiktoken(std::string_view content, const std::string& label);
// GPT-2 and Qwen 2, without a tokenizer.json.
TokenizerParts parts_of_vocab_and_merges(std::string_view vocab, std::string_view merges, const TokenizerConfig& config,
                                         const std::string& label);

// "IQ== 0": base64 of a token, a space, its rank.
bool is_tiktoken(std::string_view content);

// Split patterns of families whose files do not hold them.
extern const char* const kGpt2Pattern;
extern const char* const kLlama3Pattern;
extern const char* const kQwen2Pattern;

}  // namespace moh::text
