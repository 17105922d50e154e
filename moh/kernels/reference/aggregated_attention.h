// Aggregated attention in scalar float64: the oracle of the fused kernels. Runs only when asked for by name.
#pragma once

#include "moh/kernels/aggregated_attention.h"

namespace moh::kernels::reference {

void aggregated_attention_forward(const AggregatedAttentionParams& p);
void aggregated_attention_backward(const AggregatedAttentionParams& p);

}  // namespace moh::kernels::reference
