// The way of KV heads that few rows need: generation, above all.
#pragma once

#include "moh/kernels/cpu/work.h"

namespace moh::kernels::MOH_ISA {

// Rows of a KV head up to which packing its keys and values would cost more than it saves.
constexpr int64_t kFewRows = 8;

static inline bool has_few_rows(const RowLists& lists, int64_t kv, int64_t group) {
  return lists.first[(kv + 1) * group] - lists.first[kv * group] <= kFewRows;
}

// Writes out and lse of the rows of all such KV heads.
void forward_few(const HeadAttentionParams& p, const RowLists& lists);

}  // namespace moh::kernels::MOH_ISA
