// Items in equal parts to threads. For sources that are compiled once; those of every instruction set have their own
// (moh/kernels/cpu/row_lists.h).
#pragma once

#include <algorithm>
#include <cstdint>

#include "moh/kernels/parallel.h"

namespace moh::kernels {

template <class Body>
void split_items(const Parallel& parallel, std::int64_t count, const Body& body) {
  const int workers = static_cast<int>(std::min<std::int64_t>(parallel.num_threads, count));
  parallel(workers, [&](int worker) {
    for (std::int64_t i = count * worker / workers; i < count * (worker + 1) / workers; ++i) body(i);
  });
}

}  // namespace moh::kernels
