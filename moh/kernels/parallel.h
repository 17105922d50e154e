// How kernels reach threads without owning any: the caller lends its pool.
// LibTorch callers pass at::parallel_for (moh/ops/parallel.h), tests pass std::thread or nothing.
#pragma once

#include <cstdint>

namespace moh::kernels {

struct Parallel {
  // Calls body(context, worker) once for every worker in [0, num_workers), possibly at the same time.
  using Body = void (*)(void* context, int worker);
  using Run = void (*)(int num_workers, Body body, void* context);

  int num_threads = 1;
  Run run = nullptr;  // nullptr: everything on the calling thread

  template <class F>
  void operator()(int num_workers, F&& body) const {
    if (num_workers <= 1 || run == nullptr) {
      for (int worker = 0; worker < num_workers; ++worker) body(worker);
      return;
    }
    run(
        num_workers, [](void* context, int worker) { (*static_cast<F*>(context))(worker); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

}  // namespace moh::kernels
