// Text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace moh::text {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // No special tokens are added. Special tokens written in the text are plain text, which is the safe reading of text
  // from elsewhere; with `parse_special` they become those tokens. Broken UTF-8 is read as U+FFFD (but by "bytes").
  virtual std::vector<std::int64_t> encode(std::string_view text, bool parse_special) const = 0;
  std::vector<std::int64_t> encode(std::string_view text) const { return encode(text, false); }
  // The text of a sequence. Ids beyond the vocabulary give nothing, as in transformers: models pad their embeddings, so
  // they may sample one. Concatenating decodes of parts need not equal the decode of the whole (UTF-8 may be split):
  // see piece_bytes.
  virtual std::string decode(const std::vector<std::int64_t>& ids) const = 0;
  // The raw bytes that one id appends to the output of a running generation (SentencePiece's word-start mark becomes a
  // space; special tokens give nothing). Their concatenation, less one leading space if `strips_leading_space`, is the
  // text; moh/text/utf8.h cuts it between characters.
  virtual std::string piece_bytes(std::int64_t id) const = 0;
  virtual std::int64_t vocab_size() const = 0;
  virtual std::int64_t bos_id() const = 0;  // -1: none
  virtual std::int64_t eos_id() const = 0;  // -1: none
  // Whether a text or prompt begins with the BOS token, as the model was trained.
  virtual bool adds_bos() const = 0;
  virtual bool strips_leading_space() const = 0;
  // "tokenizer.json", "sentencepiece", "tiktoken", "vocab.json", "bytes"
  virtual std::string kind() const = 0;
};

// The tokenizer of a model folder: tokenizer.json (byte-pair encoding), else tokenizer.model (SentencePiece or tiktoken
// ranks), else vocab.json with merges.txt; bytes (ids 0..255, no special tokens) where there is no tokenizer file at
// all. A tokenizer that cannot be read is an Error, never a silent fallback.
std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& folder);
std::shared_ptr<const Tokenizer> bytes_tokenizer();

// Names of the tokenizer files present in a folder (to be copied beside a converted model).
std::vector<std::string> tokenizer_files(const std::string& folder);

// Trains a SentencePiece BPE model with byte fallback (LLaMA's settings: <unk> 0, <s> 1, </s> 2, identity
// normalisation, digits split, whitespace kept) on a text file and writes FOLDER/tokenizer.model.
void train_tokenizer(const std::string& text_file, const std::string& folder, int vocab_size);

}  // namespace moh::text
