// What the paper's form of conversion can learn from calibration text: which heads matter, which of them the router
// should prefer. The paper shares the first heads and lets the norms of the queries be.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "moh/convert/calibration.h"
#include "moh/models/llama.h"

namespace moh::convert {

// Of every layer, over the tokens of the calibration text.
struct HeadStatistics {
  // [N, choices]: square of the loss's derivative in the gate (summed over the heads of a choice). Its mean is the
  // diagonal of the empirical Fisher matrix: to second order, what switching the head off for that token costs.
  std::vector<at::Tensor> importance;
  // [N, H, D / 2]: squared lengths of the pairs of query components that RoPE turns together.
  std::vector<at::Tensor> query_pairs;
  std::vector<at::Tensor> inputs;  // [N, C], the attention's: what a two-stage router sees
};

// `config`: the converted one; heads are counted as its `select` says. One backward pass over the text, in fp32.
HeadStatistics measure_heads(const models::Llama& dense, const models::LlamaConfig& config,
                             const Calibration& calibration);

// Heads of every layer by falling importance, those chosen together kept together: a MohConfig::head_order.
std::vector<std::vector<std::int64_t>> importance_order(const HeadStatistics& statistics,
                                                        std::int64_t heads_per_choice);

// A trained router that begins with what calibration knows: wg of one layer, [routed choices, C], whose scores follow
// the logarithm of importance (ridge regression). The scores' standard deviation is made small, so that gates begin
// near the one of a dense head and only the selection is learnt.
at::Tensor fit_router(const models::LlamaConfig& config, std::int64_t layer, const HeadStatistics& statistics);

// Makes query norms tell importance: multiplies, per KV head, each rotary pair of its query heads by a factor and
// divides the same pair of the key by it. Attention stays what it was (up to rounding), the norms that route do not.
// The factors (geometric mean 1 in a layer) minimise the cross-entropy between each token's shares of importance and
// the router's probabilities. Changes the tensors of `model` in place, and the statistics of its queries with them.
void calibrate_router(models::Llama& model, const models::LlamaConfig& config, HeadStatistics& statistics);

}  // namespace moh::convert
