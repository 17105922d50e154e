// SentencePiece models (tokenizer.model of Llama 2, Mistral, Gemma and of `moh tokenizer train`).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moh/text/tokenizer.h"
#include "moh/text/tokenizer_added.h"

namespace moh::text {

// What tokenizer_config.json says.
struct SentencePieceOptions {
  std::optional<bool> adds_bos = {};
  bool legacy = false;                 // a text after an added token begins with a space too
  bool add_prefix_space = true;        // a text begins with a space where the model says so; false: never
  std::vector<AddedToken> added = {};  // beside the model's own
};
std::shared_ptr<const Tokenizer> sentencepiece_tokenizer(std::string_view model, const std::string& label,
                                                         const SentencePieceOptions& options);

}  // namespace moh::text
