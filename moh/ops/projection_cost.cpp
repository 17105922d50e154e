#include "moh/ops/projection_cost.h"

#include <atomic>

namespace moh::ops {
namespace {

std::atomic<int> forced{-1};  // -1: by cost

// LibTorch multiplies bf16 by instructions that take pairs of numbers, twice as fast as fp32 or faster; kernels that
// widen to fp32 cannot keep up.
bool has_fast_bf16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") || __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}

// The share of heads up to which skipping is faster: the kernel's speed beside that of LibTorch's product, both
// measured with 2,048 rows, 12 and 32 heads of 64 (docs/kernels.md). Below 128 rows packing the weights is too large a
// part. Narrow heads pay for packing more: MoH-ViT's heads of 24 take 0.8 of oneDNN's dense product at 50 %, 1.0 to 1.2
// of it at 75 % (784 and 3,136 rows, 384 and 192 columns, 2 threads, Zen 4).
constexpr std::int64_t kNarrow = 32;
double highest_share(Projection projection, const std::string& backend, std::int64_t head_dim) {
  if (backend == "portable") return 0.2;
  if (projection == Projection::kWeightGradient) return 0.8;
  return head_dim < kNarrow ? 0.6 : 0.9;
}
constexpr std::int64_t kFewRows = 4, kManyRows = 128;

// The same for bf16 by AVX512-BF16 (Zen 4, beside oneDNN). By AMX oneDNN's product is several times faster than ours,
// which gathers rows for AVX512-BF16: dense.
double highest_share_in_pairs(Projection projection, std::int64_t rows, std::int64_t head_dim) {
  if (projection == Projection::kWeightGradient || head_dim < kNarrow) return 0.55;
  return rows < 512 ? 0.55 : 0.8;
}

}  // namespace

bool skipping_pays(Projection projection, const std::string& backend, std::int64_t rows, std::int64_t head_dim,
                   double share, at::ScalarType dtype) {
  if (const int choice = forced.load(); choice >= 0) return choice == 1;
  // A few rows: weights are read rather than multiplied, and an unread one is time saved.
  if (rows <= kFewRows && projection == Projection::kValues) return share <= 0.9;
  if (rows < kManyRows) return false;
  if (backend == "avx512bf16") return share <= highest_share_in_pairs(projection, rows, head_dim);
  if (dtype == at::kBFloat16 && has_fast_bf16()) return false;
  return share <= highest_share(projection, backend, head_dim);
}

void force_skipping(std::optional<bool> skip) { forced = skip ? static_cast<int>(*skip) : -1; }

}  // namespace moh::ops
