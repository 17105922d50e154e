// Tokenizers of GGUF files: byte-pair encoding on bytes ("gpt2") and SentencePiece's ("llama").
#pragma once

#include "moh/io/gguf.h"
#include "moh/text/tokenizer_pipeline.h"

namespace moh::text {

// Error: a kind of tokenizer or pre-tokenizer that is not known, named; metadata that contradicts itself.
TokenizerParts parts_of_gguf(const io::GgufFile& file);

}  // namespace moh::text
