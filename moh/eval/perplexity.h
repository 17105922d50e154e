// Perplexity of a token stream, the way the interface defines it: window i has the inputs [iS, iS + S) and the same
// shifted by one as targets, so every target counts once.
#pragma once

#include <functional>

#include "moh/data/token_data.h"
#include "moh/models/llama.h"

namespace moh::eval {

struct PerplexityResult {
  double nll = 0;           // mean natural-log loss per token
  double perplexity = 0;    // exp(nll)
  std::int64_t tokens = 0;  // targets counted
  double active_heads = 1;  // share of (token, layer, head) with a gate that is not zero
};

struct PerplexityOptions {
  std::int64_t sequence = 0;     // S; 0: the model's context
  std::int64_t batch = 8;        // windows at a time
  std::int64_t max_windows = 0;  // 0: all
  std::optional<at::ScalarType> autocast = {};
  // Several processes may do a part each: this is number `part`, and `sum` adds numbers up over all of them.
  int part = 0, parts = 1;
  std::function<void(std::vector<double>&)> sum = {};
};

// `progress` hears of the share done, 0 to 1. The last window may be shorter. Errors: a stream of fewer than two
// tokens, a sequence longer than the model's context.
PerplexityResult perplexity(const models::Llama& model, const data::TokenStream& stream,
                            const PerplexityOptions& options, const std::function<void(double)>& progress = {});

// Share of (token, layer, head) that are active in a forward pass; 1 for a dense model.
double active_share(const models::LlamaOutput& output);

}  // namespace moh::eval
