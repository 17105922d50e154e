// Benchmarks of `moh bench`: one file a subject. A case checks its result against a reference first, then times moh and
// the rival alternately in one process; the ratio is the median of the ratios of neighbouring runs, so that a machine
// that slows down for a while slows both.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "moh/base/fields.h"

namespace moh::bench {

struct Grid {
  std::vector<std::int64_t> heads = {32}, kv_heads = {}, head_dim = {64}, tokens = {256, 1024}, batch = {1},
                            threads = {};
  std::vector<double> activated = {1.0, 0.75, 0.5};
  std::vector<std::string> causal = {"yes"}, dtype = {"fp32"}, direction = {"forward"}, rival = {"torch_sdpa"};
  double seconds = 1.0;  // time spent on each case
  std::uint64_t seed = 0;
};

struct Timing {
  double moh_ms = 0, rival_ms = 0;                  // medians
  double ratio = 0, ratio_low = 0, ratio_high = 0;  // median and quartiles of moh / rival over pairs
  std::int64_t pairs = 0;
};

// Warms both up, then runs them in turn for about `seconds`, at least five pairs; the order changes from pair to pair.
Timing time_pair(const std::function<void()>& moh, const std::function<void()>& rival, double seconds);

// Emits one JSON object a case.
using Emit = std::function<void(const Json& row)>;
void bench_attention(const Grid& grid, const Emit& emit, const std::function<bool()>& stopped);

}  // namespace moh::bench
