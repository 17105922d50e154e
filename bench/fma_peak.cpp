#include "bench/fma_peak.h"

namespace moh::bench {
namespace {

// Twelve chains hide a latency of six cycles at two multiply-adds a cycle. Named variables stay in registers where an
// array would not; the empty asm keeps the compiler from computing the result without the loop.
#define MOH_CHAINS(apply) \
  apply(0) apply(1) apply(2) apply(3) apply(4) apply(5) apply(6) apply(7) apply(8) apply(9) apply(10) apply(11)
#define MOH_BEGIN(i) Vector chain##i = addend;
#define MOH_STEP(i)                      \
  chain##i = chain##i * factor + addend; \
  asm volatile("" : "+x"(chain##i));
#define MOH_FMA_LOOP(bytes)                                 \
  typedef float Vector __attribute__((vector_size(bytes))); \
  Vector factor = {}, addend = {};                          \
  factor += 0.5F; /* values stay finite */                  \
  addend += 1.0F;                                           \
  MOH_CHAINS(MOH_BEGIN)                                     \
  for (std::int64_t round = 0; round < rounds; ++round) {   \
    MOH_CHAINS(MOH_STEP)                                    \
  }                                                         \
  return 2.0 * 12 * (bytes / sizeof(float)) * static_cast<double>(rounds);

#if defined(__x86_64__)
__attribute__((target("avx512f"), optimize("O3", "fp-contract=fast"))) double rounds_512(std::int64_t rounds) {
  MOH_FMA_LOOP(64)
}
__attribute__((target("avx2,fma"), optimize("O3", "fp-contract=fast"))) double rounds_256(std::int64_t rounds) {
  MOH_FMA_LOOP(32)
}
__attribute__((optimize("O3", "fp-contract=fast"))) double rounds_128(std::int64_t rounds) { MOH_FMA_LOOP(16) }
#endif

}  // namespace

double fma_rounds(std::int64_t rounds, bool wide) {
#if defined(__x86_64__)
  if (wide && __builtin_cpu_supports("avx512f")) return rounds_512(rounds);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return rounds_256(rounds);
  return rounds_128(rounds);
#else
  (void)rounds;
  (void)wide;
  return 0;  // not measured
#endif
}

}  // namespace moh::bench
