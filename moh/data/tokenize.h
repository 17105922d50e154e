// Documents to a folder of token ids, as training reads them (token_data.h):
//
//   ids.bin        uint16 ids, uint32 for a vocabulary above 65,536: every document's, one after another; a document
//                  begins with BOS and ends with EOS if the tokenizer has them
//   documents.bin  uint64 place of every document's first id
//   tokens.json    what the folder was made from and how far it got
//
// The folder is the same to the byte whatever the number of workers and however often the work was interrupted.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "moh/text/tokenizer.h"

namespace moh::data {

struct TokenizeOptions {
  std::vector<std::string> inputs;  // text files (a document each), JSON lines, folders of them
  std::string field = "text";       // of a JSON line
  std::string out;
  int workers = 1;
  std::int64_t commit_tokens = std::int64_t{64} << 20;  // between notes of how far it got
};

struct TokenizeResult {
  std::int64_t tokens = 0, documents = 0;
  bool done = false;  // false: stopped; the same call goes on
};

// `progress` hears of files done and tokens made. Goes on where an interrupted call with the same options stopped.
// Errors: a line that is no JSON object with the field, named; a folder that was made from something else.
TokenizeResult tokenize_documents(const text::Tokenizer& tokenizer, const std::string& tokenizer_name,
                                  const TokenizeOptions& options, const std::atomic<bool>& stop,
                                  const std::function<void(double done, std::int64_t tokens)>& progress = {});

}  // namespace moh::data
