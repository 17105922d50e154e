// Which heads every token uses: what a router yields once, and what the projections, the attention and the output of
// the layer then take, backward too. A row is one token of one sequence; R rows in all, H heads.
#pragma once

#include <cstdint>

#include "moh/kernels/parallel.h"

// Of small functions that sources compiled once per instruction set share with others: the linker must not get to
// choose between their copies.
#define MOH_ALWAYS_INLINE [[gnu::always_inline]] inline

namespace moh::kernels {

struct Selection {
  std::int64_t num_rows = 0, num_heads = 0;  // R, H
  const float* gates = nullptr;              // [R, H] contiguous; zero: the row does not use the head
  // The rows that use head h, ascending: rows[first[h]] .. rows[first[h + 1] - 1].
  const std::int32_t* rows = nullptr;   // room for R * H
  const std::int64_t* first = nullptr;  // [H + 1]

  MOH_ALWAYS_INLINE std::int64_t count(std::int64_t h) const { return first[h + 1] - first[h]; }
  MOH_ALWAYS_INLINE const std::int32_t* begin(std::int64_t h) const { return rows + first[h]; }
  MOH_ALWAYS_INLINE std::int64_t total() const { return first[num_heads]; }
};

// Fills `rows` (room for R * H) and `first` (H + 1) from the gates. The result does not depend on the threads.
void list_rows(const float* gates, std::int64_t num_rows, std::int64_t num_heads, std::int32_t* rows,
               std::int64_t* first, const Parallel& parallel);

}  // namespace moh::kernels
