// The head-skipping projections in scalar float64: the oracle of the fused kernels. Runs only when asked for by name.
#pragma once

#include "moh/kernels/projection.h"

namespace moh::kernels::reference {

void project_heads(const ProjectionParams& p);
void combine_heads(const ProjectionParams& p);
void weight_gradient(const ProjectionParams& p);

}  // namespace moh::kernels::reference
