// Tokenizers of GGUF files: byte-pair encoding on bytes ("gpt2") and SentencePiece's ("llama").
#pragma once

#include <string>

#include "moh/io/gguf.h"
#include "moh/text/tokenizer_pipeline.h"

namespace moh::text {

// Error: a kind of tokenizer or pre-tokenizer that is not known, named; metadata that contradicts itself.
TokenizerParts parts_of_gguf(const io::GgufFile& file);

// The same as tokenizer.json and tokenizer_config.json (with the chat template) in `folder`; nothing if the file holds no
// tokenizer. Errors as above.
void write_gguf_tokenizer(const io::GgufFile& file, const std::string& folder);

}  // namespace moh::text
