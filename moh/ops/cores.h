// LibTorch's threads and the cores that there are.
#pragma once

namespace moh::ops {

// LibTorch begins with a thread for every core of the affinity mask; a control group's quota may allow fewer. Lowers
// the number to that, unless OMP_NUM_THREADS says what the user wants.
void use_available_cores();

}  // namespace moh::ops
