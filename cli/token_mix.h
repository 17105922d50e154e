// Training text as the command line names it: one file or folder, or a mix.toml of several.
#pragma once

#include <string>

#include "moh/data/token_mix.h"
#include "moh/text/tokenizer.h"

namespace moh::cli {

// A mix.toml:
//
//   [[source]]
//   name = "books"            # of its validation loss in the log; default: the last part of `data`
//   data = "tokens/books"     # whatever --data takes; relative to the folder of mix.toml
//   weight = 4.5              # share of the windows, relative to the others'
//   valid = "tokens/books-v"  # optional
data::TokenMix open_token_mix(const std::string& path, const text::Tokenizer* tokenizer, std::int64_t vocab_size);

}  // namespace moh::cli
