#include "moh/kernels/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace moh::kernels {
namespace {

// Keeps the best so far in order; a later score must be larger to pass an earlier one, so ties stay in order. `best`
// has room for top_k scores.
void select_row(const float* scores, std::int64_t num_routed, std::int64_t top_k, float* best, std::int64_t* indices) {
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < num_routed; ++i) {
    const float score = std::isnan(scores[i]) ? -std::numeric_limits<float>::infinity() : scores[i];
    if (kept == top_k && !(score > best[kept - 1])) continue;
    std::int64_t place = kept < top_k ? kept++ : kept - 1;
    for (; place > 0 && score > best[place - 1]; --place) {
      best[place] = best[place - 1];
      indices[place] = indices[place - 1];
    }
    best[place] = score;
    indices[place] = i;
  }
}

// body(row, room for top_k scores).
template <class Body>
void for_each_row(const Parallel& parallel, std::int64_t rows, std::int64_t top_k, const Body& body) {
  constexpr std::int64_t kRowsPerWorker = 256;  // below, starting a thread costs more than it brings
  const auto workers =
      static_cast<int>(std::min<std::int64_t>(parallel.num_threads, (rows + kRowsPerWorker - 1) / kRowsPerWorker));
  parallel(workers, [&](int worker) {
    const std::int64_t begin = rows * worker / workers, end = rows * (worker + 1) / workers;
    std::vector<float> best(static_cast<std::size_t>(top_k));
    for (std::int64_t row = begin; row < end; ++row) body(row, best.data());
  });
}

void softmax(const float* scores, std::int64_t count, float factor, float* to) {
  const float best = *std::max_element(scores, scores + count);
  float sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += to[i] = std::exp(scores[i] - best);
  for (std::int64_t i = 0; i < count; ++i) to[i] *= factor / sum;
}

}  // namespace

void select_top_k(const float* scores, std::int64_t rows, std::int64_t num_routed, std::int64_t top_k,
                  std::int64_t* indices, const Parallel& parallel) {
  if (top_k == 0) return;
  for_each_row(parallel, rows, top_k, [&](std::int64_t row, float* best) {
    select_row(scores + row * num_routed, num_routed, top_k, best, indices + row * top_k);
  });
}

void two_stage_gates(const TwoStageParams& p) {
  const std::int64_t shared = p.shared_heads, scored = shared > 1 ? shared : 0;
  const bool both = shared > 0 && p.num_routed > 0;
  const std::int64_t width = scored + p.num_routed + (both ? 2 : 0);
  for_each_row(p.parallel, p.rows, p.top_k, [&](std::int64_t row, float* best) {
    const float* const products = p.products + row * width;
    float *const gates = p.gates + row * (shared + p.num_routed), *const routed = gates + shared;
    if (scored > 0) softmax(products, shared, p.authors ? static_cast<float>(shared) : 1.0F, gates);
    if (shared == 1) gates[0] = 1;
    if (p.num_routed == 0) return;
    float* const probabilities = p.probabilities + row * p.num_routed;
    std::int64_t* const indices = p.indices + row * p.top_k;
    softmax(products + scored, p.num_routed, 1.0F, probabilities);
    if (p.top_k > 0) select_row(probabilities, p.num_routed, p.top_k, best, indices);
    float kind[2] = {1, 1}, sum = 0;
    if (both) softmax(products + scored + p.num_routed, 2, p.authors ? 2.0F : 1.0F, kind);
    for (std::int64_t i = 0; i < shared; ++i) gates[i] *= kind[0];
    for (std::int64_t i = 0; i < p.top_k; ++i) sum += probabilities[indices[i]];
    const float factor =
        p.authors ? static_cast<float>(p.top_k) / std::max(sum, std::numeric_limits<float>::epsilon()) : 1.0F;
    std::fill(routed, routed + p.num_routed, 0.0F);
    for (std::int64_t i = 0; i < p.top_k; ++i) routed[indices[i]] = probabilities[indices[i]] * factor * kind[1];
  });
}

}  // namespace moh::kernels
