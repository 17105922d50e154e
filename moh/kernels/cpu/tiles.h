// Products of bf16 numbers with fp32 sums: the instructions of AVX512-BF16 and AMX behind a handful of functions, and
// an emulation of each, bit for bit as the manual defines them, for compilers and CPUs without: MOH_PAIRS asks for the
// former, MOH_TILES for both (cmake/MohKernels.cmake). Both take bf16 numbers in pairs, a 32-bit word each, the first
// number in the low half.
//
// Common to all: round to nearest even, subnormal numbers count as zero on the way in and out, MXCSR plays no part.
#pragma once

#include <math.h>

#include "moh/kernels/cpu/simd.h"
#if defined(__AVX512BF16__)
  #include <immintrin.h>
#endif

namespace moh::kernels::MOH_ISA {

typedef uint32_t Word;  // a pair of bf16 numbers
typedef uint32_t UnalignedBitVec __attribute__((vector_size(MOH_VECTOR_BYTES), aligned(2), may_alias));

static inline BitVec load(const Word* from) { return *reinterpret_cast<const UnalignedBitVec*>(from); }
static inline void store(Word* to, BitVec value) { *reinterpret_cast<UnalignedBitVec*>(to) = value; }
static inline BitVec splat(uint32_t word) { return word | BitVec{}; }
#if MOH_VECTOR_BYTES == 64
typedef uint32_t HalfOfBits __attribute__((vector_size(MOH_VECTOR_BYTES / 2)));
typedef uint32_t UnalignedHalfOfBits __attribute__((vector_size(MOH_VECTOR_BYTES / 2), aligned(2), may_alias));
static inline HalfOfBits load_half(const Word* from) { return *reinterpret_cast<const UnalignedHalfOfBits*>(from); }
static inline HalfOfBits splat_half(Word word) { return word | HalfOfBits{}; }
#endif

static inline float flushed(float value) {  // subnormal numbers to zero, the sign stays
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7f800000U) == 0) bits &= 0x80000000U;
  memcpy(&value, &bits, 4);
  return value;
}
static inline float first_of(uint32_t word) { return flushed(widen_one(static_cast<uint16_t>(word))); }
static inline float second_of(uint32_t word) { return flushed(widen_one(static_cast<uint16_t>(word >> 16))); }

// VDPBF16PS of one lane: the second product is added before the first.
static inline float add_pair(float sum, uint32_t a, uint32_t b) {
  sum = flushed(fmaf(second_of(a), second_of(b), flushed(sum)));
  return flushed(fmaf(first_of(a), first_of(b), sum));
}

// VCVTNEPS2BF16 of one lane.
static inline uint16_t to_bf16_flushed(float value) { return to_bf16(flushed(value)); }

#if defined(__AVX512BF16__)
static inline Vec add_pairs(Vec sum, BitVec a, BitVec b) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
static inline HalfOfVec add_pairs(HalfOfVec sum, HalfOfBits a, HalfOfBits b) {
  return (HalfOfVec)_mm256_dpbf16_ps((__m256)sum, (__m256bh)a, (__m256bh)b);
}
// 32 numbers to bf16: `low` fills the first 8 words.
static inline BitVec to_pairs(Vec low, Vec high) { return (BitVec)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }
#else
[[gnu::noinline, maybe_unused]] static Vec add_pairs(Vec sum, BitVec a, BitVec b) {
  for (int i = 0; i < kWidth; ++i) sum[i] = add_pair(sum[i], a[i], b[i]);
  return sum;
}
  #if MOH_VECTOR_BYTES == 64
[[gnu::noinline, maybe_unused]] static HalfOfVec add_pairs(HalfOfVec sum, HalfOfBits a, HalfOfBits b) {
  for (int i = 0; i < kHalf; ++i) sum[i] = add_pair(sum[i], a[i], b[i]);
  return sum;
}
  #endif
[[gnu::noinline, maybe_unused]] static BitVec to_pairs(Vec low, Vec high) {
  BitVec words = {};
  for (int i = 0; i < kWidth; ++i) {
    const Vec& from = i < kWidth / 2 ? low : high;
    const int at = 2 * i % kWidth;
    words[i] = to_bf16_flushed(from[at]) | static_cast<uint32_t>(to_bf16_flushed(from[at + 1])) << 16;
  }
  return words;
}
#endif
// Word i holds first[i] and second[i].
static inline BitVec join_pairs(Vec first, Vec second) {
#if defined(__AVX512BF16__)
  const auto half = [](Vec v) { return (__v16hu)_mm512_cvtneps_pbh((__m512)v); };
  return __builtin_convertvector(half(first), BitVec) | __builtin_convertvector(half(second), BitVec) << 16;
#else
  BitVec words = {};
  for (int i = 0; i < kWidth; ++i) {
    words[i] = to_bf16_flushed(first[i]) | static_cast<uint32_t>(to_bf16_flushed(second[i])) << 16;
  }
  return words;
#endif
}

#if defined(MOH_TILES)
// Eight registers of 16 rows of 64 bytes. All are used whole.
constexpr int64_t kTile = 16;  // rows, words in a row

  #if defined(__AMX_BF16__)
struct Tiles {  // usable on this thread while one lives
  Tiles() {
    alignas(64) uint8_t config[64] = {1};  // palette 1
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 64;  // bytes of a row
      config[48 + tile] = kTile;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~Tiles() { asm volatile("tilerelease" ::); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};
template <int tile>
static inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}
template <int tile>
static inline void load_tile(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(tile) : "memory");
}
template <int tile>
static inline void store_tile(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(tile) : "memory");
}
// c[m][n] += sum over k of the pairs a[m][k] and b[k][n]
template <int c, int a, int b>
static inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
  #else
static thread_local uint32_t tile_registers[8][kTile][kTile];
struct Tiles {
  Tiles() { memset(tile_registers, 0, sizeof(tile_registers)); }
};
template <int tile>
static void zero_tile() {
  memset(tile_registers[tile], 0, sizeof(tile_registers[tile]));
}
template <int tile>
static void load_tile(const void* from, int64_t row_bytes) {
  for (int64_t i = 0; i < kTile; ++i) {
    memcpy(tile_registers[tile][i], static_cast<const char*>(from) + i * row_bytes, 64);
  }
}
template <int tile>
static void store_tile(void* to, int64_t row_bytes) {
  for (int64_t i = 0; i < kTile; ++i) {
    memcpy(static_cast<char*>(to) + i * row_bytes, tile_registers[tile][i], 64);
  }
}
// TDPBF16PS: first and second numbers of the pairs have sums of their own, from zero, over all k; these two are added,
// then the result to c.
static inline void multiply_tile_registers(uint32_t (*c)[kTile], const uint32_t (*a)[kTile],
                                           const uint32_t (*b)[kTile]) {
  for (int64_t m = 0; m < kTile; ++m) {
    for (int64_t n = 0; n < kTile; ++n) {
      float first = 0, second = 0, sum;
      for (int64_t k = 0; k < kTile; ++k) {
        first = flushed(fmaf(first_of(a[m][k]), first_of(b[k][n]), first));
        second = flushed(fmaf(second_of(a[m][k]), second_of(b[k][n]), second));
      }
      memcpy(&sum, &c[m][n], 4);
      sum = flushed(flushed(sum) + flushed(first + second));
      memcpy(&c[m][n], &sum, 4);
    }
  }
}
template <int c, int a, int b>
static void multiply_tiles() {
  multiply_tile_registers(tile_registers[c], tile_registers[a], tile_registers[b]);
}
  #endif
#else
constexpr int64_t kTile = 1;
struct Tiles {
  Tiles() {}
};
#endif

}  // namespace moh::kernels::MOH_ISA
