// Which heads tokens select: for every layer the share of tokens that use each head (paper, head-load figures).
#pragma once

#include <vector>

#include "moh/data/token_data.h"
#include "moh/models/llama.h"

namespace moh::eval {

struct HeadLoad {
  std::vector<std::vector<double>> share;  // [layer][head], 1 for shared heads
  std::int64_t tokens = 0;
};

// Over at most max_windows windows of `sequence` tokens. Dense models have share 1 everywhere.
HeadLoad head_load(const models::Llama& model, const data::TokenStream& stream, std::int64_t sequence,
                   std::int64_t max_windows);

}  // namespace moh::eval
