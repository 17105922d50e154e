#include "moh/kernels/selection.h"

#include <algorithm>
#include <vector>

namespace moh::kernels {

// Every worker counts its part of the rows, then fills what lies behind the parts before it: the gates are read in
// their own order both times.
void list_rows(const float* gates, std::int64_t num_rows, std::int64_t num_heads, std::int32_t* rows,
               std::int64_t* first, const Parallel& parallel) {
  constexpr std::int64_t kGatesPerWorker = 16384;  // below, starting a thread costs more than it brings
  const std::int64_t wanted = num_rows * num_heads / kGatesPerWorker;
  const auto workers = static_cast<int>(std::clamp<std::int64_t>(wanted, 1, parallel.num_threads));
  std::vector<std::int64_t> next(static_cast<std::size_t>(workers * num_heads), 0);  // [worker][head]
  const auto for_each_selected = [&](int worker, const auto& body) {
    for (std::int64_t r = num_rows * worker / workers; r < num_rows * (worker + 1) / workers; ++r) {
      for (std::int64_t h = 0; h < num_heads; ++h) {
        if (gates[r * num_heads + h] != 0) body(r, h);
      }
    }
  };
  parallel(workers, [&](int worker) {
    std::int64_t* const count = &next[static_cast<std::size_t>(worker * num_heads)];
    for_each_selected(worker, [&](std::int64_t, std::int64_t h) { ++count[h]; });
  });
  std::int64_t place = 0;
  for (std::int64_t h = 0; h < num_heads; ++h) {
    first[h] = place;
    for (int worker = 0; worker < workers; ++worker) {
      std::int64_t& entry = next[static_cast<std::size_t>(worker * num_heads + h)];
      const std::int64_t count = entry;
      entry = place;
      place += count;
    }
  }
  first[num_heads] = place;
  parallel(workers, [&](int worker) {
    std::int64_t* const at = &next[static_cast<std::size_t>(worker * num_heads)];
    for_each_selected(worker, [&](std::int64_t r, std::int64_t h) { rows[at[h]++] = static_cast<std::int32_t>(r); });
  });
}

}  // namespace moh::kernels
