// Head-sparse attention in scalar float64, line by line as the formula says: the oracle of the fused kernels. Slow; it
// runs only when asked for by name.
#pragma once

#include "moh/kernels/head_attention.h"

namespace moh::kernels::reference {

void head_attention_forward(const HeadAttentionParams& p);
void head_attention_backward(const HeadAttentionParams& p);

}  // namespace moh::kernels::reference
