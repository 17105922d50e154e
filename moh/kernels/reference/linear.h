// Linear maps by stored weights in scalar float64: the oracle of the fused kernels. Runs only when asked for by name.
#pragma once

#include "moh/kernels/packed_linear.h"
#include "moh/kernels/quantized_linear.h"

namespace moh::kernels::reference {

void packed_linear(const PackedLinearParams& p);
void quantized_linear(const QuantizedLinearParams& p);

}  // namespace moh::kernels::reference
