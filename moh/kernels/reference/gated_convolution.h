// The gated convolution in scalar float64: the oracle of the fused kernels. Runs only when asked for by name.
#pragma once

#include "moh/kernels/gated_convolution.h"

namespace moh::kernels::reference {

void gated_convolution_forward(const GatedConvolutionParams& p);
void gated_convolution_backward(const GatedConvolutionParams& p);

}  // namespace moh::kernels::reference
