#include "moh/ops/parallel.h"

#include <ATen/Parallel.h>

namespace moh::ops {

kernels::Parallel torch_parallel() {
  kernels::Parallel parallel;
  if (at::in_parallel_region()) return parallel;
  parallel.num_threads = at::get_num_threads();
  parallel.run = [](int num_workers, kernels::Parallel::Body body, void* context) {
    at::parallel_for(0, num_workers, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
    });
  };
  return parallel;
}

}  // namespace moh::ops
