// Parts of the lists of rows that heads compute, and how work is handed to threads.
#pragma once

#include "moh/kernels/cpu/simd.h"
#include "moh/kernels/selection.h"

namespace moh::kernels::MOH_ISA {

// The first place in `rows`, which are in order, whose row is not below `row`.
static inline int64_t first_not_below(const int32_t* rows, int64_t count, int64_t row) {
  int64_t low = 0;
  while (low < count) {
    const int64_t middle = (low + count) / 2;
    if (rows[middle] < row) {
      low = middle + 1;
    } else {
      count = middle;
    }
  }
  return low;
}

// A part of a head's list of rows.
struct HeadRows {
  const int32_t* rows;
  int64_t count;
};
// Those from `begin` to `end`.
static inline HeadRows rows_between(const Selection& selection, int64_t h, int64_t begin, int64_t end) {
  const int32_t* const all = selection.begin(h);
  const int64_t count = selection.count(h), first = first_not_below(all, count, begin);
  return {all + first, first_not_below(all + first, count - first, end)};
}

// Hands the items 0 .. count - 1 to threads one after another; `body(item)`.
template <class Body>
void for_each_item(const Parallel& parallel, int64_t count, Body&& body) {
  int64_t next = 0;
  const int workers = static_cast<int>(min_of(parallel.num_threads, count));
  parallel(workers, [&](int) {
    for (;;) {
      const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (item >= count) return;
      body(item);
    }
  });
}

}  // namespace moh::kernels::MOH_ISA
