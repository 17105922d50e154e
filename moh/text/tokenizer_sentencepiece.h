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

// `adds_bos`: what tokenizer_config.json says about it, if anything. `added`: tokens beside the model's own.
std::shared_ptr<const Tokenizer> sentencepiece_tokenizer(std::string_view model, const std::string& label,
                                                         std::optional<bool> adds_bos,
                                                         const std::vector<AddedToken>& added = {});

}  // namespace moh::text
