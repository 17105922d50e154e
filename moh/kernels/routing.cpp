#include "moh/kernels/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace moh::kernels {
namespace {

// Keeps the best indices so far in order; a later score must be larger to pass an earlier one, so ties stay in order.
void select_row(const float* scores, std::int64_t num_routed, std::int64_t top_k, std::int64_t* indices) {
  const auto value = [&](std::int64_t i) {
    return std::isnan(scores[i]) ? -std::numeric_limits<float>::infinity() : scores[i];
  };
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < num_routed; ++i) {
    const float score = value(i);
    std::int64_t place = kept;
    while (place > 0 && score > value(indices[place - 1])) --place;
    if (place >= top_k) continue;
    if (kept < top_k) ++kept;
    for (std::int64_t j = kept - 1; j > place; --j) indices[j] = indices[j - 1];
    indices[place] = i;
  }
}

}  // namespace

void select_top_k(const float* scores, std::int64_t rows, std::int64_t num_routed, std::int64_t top_k,
                  std::int64_t* indices, const Parallel& parallel) {
  if (top_k == 0) return;
  constexpr std::int64_t kRowsPerWorker = 1024;  // below, starting a thread costs more than it brings
  const auto workers =
      static_cast<int>(std::min<std::int64_t>(parallel.num_threads, (rows + kRowsPerWorker - 1) / kRowsPerWorker));
  parallel(workers, [&](int worker) {
    const std::int64_t begin = rows * worker / workers, end = rows * (worker + 1) / workers;
    for (std::int64_t row = begin; row < end; ++row) {
      select_row(scores + row * num_routed, num_routed, top_k, indices + row * top_k);
    }
  });
}

}  // namespace moh::kernels
