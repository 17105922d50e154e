#include "moh/ops/cores.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>

#include "moh/base/cores.h"

namespace moh::ops {

void use_available_cores() {
  if (std::getenv("OMP_NUM_THREADS") != nullptr) return;
  at::set_num_threads(std::min(at::get_num_threads(), available_cores()));
}

}  // namespace moh::ops
