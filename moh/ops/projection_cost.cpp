#include "moh/ops/projection_cost.h"

#include <atomic>

namespace moh::ops {
namespace {

std::atomic<int> forced{-1};  // -1: by cost

// LibTorch multiplies bf16 by instructions that take pairs of numbers, twice as fast as fp32 or faster; the skipping
// kernels widen to fp32.
bool has_fast_bf16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") || __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}

}  // namespace

bool skipping_pays(std::int64_t rows, double share, at::ScalarType dtype) {
  if (const int choice = forced.load(); choice >= 0) return choice == 1;
  if (share >= 0.95) return false;
  if (rows <= 4) return true;   // weights are read, not multiplied: unread ones are time saved
  if (rows < 64) return false;  // packing the weights would cost more than is saved
  if (dtype == at::kBFloat16 && has_fast_bf16()) return false;
  return true;
}

void force_skipping(std::optional<bool> skip) { forced = skip ? static_cast<int>(*skip) : -1; }

}  // namespace moh::ops
