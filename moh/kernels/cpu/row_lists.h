// Which rows a head computes, and how work is handed to threads.
#pragma once

#include "moh/kernels/cpu/simd.h"
#include "moh/kernels/parallel.h"

namespace moh::kernels::MOH_ISA {

// The rows whose gate of a head is not zero, in order, for every (batch, head): row[first[b * heads + h] ...]. Rows
// before `first_row` use none.
struct RowLists {
  Buffer<int32_t> row;
  Buffer<int64_t> first;
  RowLists(const float* gates, int64_t batch, int64_t rows, int64_t heads, int64_t first_row)
      : row(batch * heads * rows), first(batch * heads + 1) {
    for (int64_t i = 0; i <= batch * heads; ++i) first[i] = 0;
    // Counts, then places: the gates are read in their own order both times.
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t t = first_row; t < rows; ++t) {
        for (int64_t h = 0; h < heads; ++h) first[b * heads + h + 1] += gates[(b * rows + t) * heads + h] != 0;
      }
    }
    for (int64_t i = 0; i < batch * heads; ++i) first[i + 1] += first[i];
    Buffer<int64_t> next(batch * heads);
    for (int64_t i = 0; i < batch * heads; ++i) next[i] = first[i];
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t t = first_row; t < rows; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
          if (gates[(b * rows + t) * heads + h] != 0) row[next[b * heads + h]++] = static_cast<int32_t>(t);
        }
      }
    }
  }
  int64_t count(int64_t bh) const { return first[bh + 1] - first[bh]; }
  const int32_t* begin(int64_t bh) const { return &row[first[bh]]; }
};

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
