// A selection made from gates, as the router makes it.
#pragma once

#include <cstdint>
#include <vector>

#include "moh/kernels/selection.h"

struct ListedRows {
  std::vector<std::int32_t> rows;
  std::vector<std::int64_t> first;

  moh::kernels::Selection of(const float* gates, std::int64_t num_rows, std::int64_t num_heads) {
    rows.resize(static_cast<std::size_t>(num_rows * num_heads) + 1);
    first.resize(static_cast<std::size_t>(num_heads) + 1);
    moh::kernels::list_rows(gates, num_rows, num_heads, rows.data(), first.data(), {});
    return {num_rows, num_heads, gates, rows.data(), first.data()};
  }
};
