// A larger vocabulary for a model, as continued training on another language begins (paper, section 3.4:
// MoH-LLaMA3-8B): a new piece's row of the embedding and of the head is the mean of the rows of the old pieces that its
// text splits into.
#pragma once

#include "moh/models/llama.h"
#include "moh/text/tokenizer.h"

namespace moh::convert {

// The model with `size` rows. `grown` must extend `old`: pieces below the old size are the same. Pieces without text
// (special tokens) and rows beyond the tokenizer get the mean of all old rows. Errors: another piece below the old
// size, named; a size smaller than the model's or than the tokenizer needs.
models::Llama grow_vocabulary(const models::Llama& model, const text::Tokenizer& old, const text::Tokenizer& grown,
                              std::int64_t size);

}  // namespace moh::convert
