// LibTorch's thread pool lent to kernels.
#pragma once

#include "moh/kernels/parallel.h"

namespace moh::ops {

// at::get_num_threads() threads of the pool that LibTorch's own operators use; a single one inside a parallel region.
kernels::Parallel torch_parallel();

}  // namespace moh::ops
