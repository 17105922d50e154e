// Vectors of one instruction set, by GCC's vector extensions: the same source for AVX-512, AVX2 and any other CPU.
// Included by sources that are compiled once per ISA; everything lies in the namespace MOH_ISA, and nothing here is a
// std template, or the linker might keep the AVX-512 copy of a shared inline function.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "moh/kernels/dtype.h"
#include "moh/kernels/work_memory.h"

#ifndef MOH_ISA
  #define MOH_ISA portable
#endif
#ifndef MOH_VECTOR_BYTES
  #define MOH_VECTOR_BYTES 16
#endif

namespace moh::kernels::MOH_ISA {

typedef float Vec __attribute__((vector_size(MOH_VECTOR_BYTES)));
typedef int32_t IntVec __attribute__((vector_size(MOH_VECTOR_BYTES)));
typedef uint32_t BitVec __attribute__((vector_size(MOH_VECTOR_BYTES)));
typedef uint16_t HalfVec __attribute__((vector_size(MOH_VECTOR_BYTES / 2), aligned(2), may_alias));
typedef float UnalignedVec __attribute__((vector_size(MOH_VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t UnalignedIntVec __attribute__((vector_size(MOH_VECTOR_BYTES), aligned(4), may_alias));

constexpr int kWidth = MOH_VECTOR_BYTES / 4;  // floats in a vector
// Register tile of the products: kRows x kVectors accumulators, so that they, a row of B and a broadcast fit into the
// 32 registers of AVX-512 or the 16 of the others.
constexpr int kRows = 6;
constexpr int kVectors = MOH_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kPanel = kVectors * kWidth;  // columns of B that one tile covers
// With AVX-512 a panel may end in half a vector: a head of 24 or 72 columns would otherwise waste a quarter or a tenth.
// CPUs that take a 512-bit operation in two halves (Zen 4) do only one.
#if MOH_VECTOR_BYTES == 64
constexpr int kHalf = kWidth / 2;
typedef float HalfOfVec __attribute__((vector_size(MOH_VECTOR_BYTES / 2)));
typedef float UnalignedHalf __attribute__((vector_size(MOH_VECTOR_BYTES / 2), aligned(4), may_alias));
static inline HalfOfVec load_half(const float* from) { return *reinterpret_cast<const UnalignedHalf*>(from); }
static inline HalfOfVec splat_half(float value) { return value - HalfOfVec{}; }
static inline void store_half(float* to, HalfOfVec value) { *reinterpret_cast<UnalignedHalf*>(to) = value; }
#else
constexpr int kHalf = kWidth;
#endif

static inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
static inline IntVec load(const int32_t* from) { return *reinterpret_cast<const UnalignedIntVec*>(from); }
static inline void store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }
static inline void store(int32_t* to, IntVec value) { *reinterpret_cast<UnalignedIntVec*>(to) = value; }
// x - 0 is x, -0 too, so that this is one broadcast; 0 + x would be an addition and a shuffle in the inner loops.
static inline Vec splat(float value) { return value - Vec{}; }
static inline Vec max_of(Vec a, Vec b) { return a > b ? a : b; }
// The lanes i and i ^ half change places.
static inline Vec swap_lanes(Vec v, int half) {
#if MOH_VECTOR_BYTES == 64
  constexpr IntVec kLanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif MOH_VECTOR_BYTES == 32
  constexpr IntVec kLanes = {0, 1, 2, 3, 4, 5, 6, 7};
#else
  constexpr IntVec kLanes = {0, 1, 2, 3};
#endif
  return __builtin_shuffle(v, kLanes ^ half);
}
static inline float max_in(Vec v) {
#pragma GCC unroll 4
  for (int half = kWidth / 2; half > 0; half /= 2) v = max_of(v, swap_lanes(v, half));
  return v[0];
}
static inline float sum_in(Vec v) {
#pragma GCC unroll 4
  for (int half = kWidth / 2; half > 0; half /= 2) v += swap_lanes(v, half);
  return v[0];
}

// 2^x to about 2 ulp; 0 below -125, NaN stays NaN. Round to an integer n by adding 1.5 * 2^23, a polynomial (Cephes'
// exp2f) for the rest in [-1/2, 1/2], n added to the exponent.
static inline Vec exp2_of(Vec x) {
  constexpr float kMagic = 12582912.0F, kLowest = -125.0F;
  const Vec clamped = x > kLowest ? x : splat(kLowest);
  const Vec shifted = clamped + kMagic;
  const Vec f = clamped - (shifted - kMagic);
  Vec p = splat(1.535336188319500e-4F);
  p = p * f + 1.339887440266574e-3F;
  p = p * f + 9.618437357674640e-3F;
  p = p * f + 5.550332471162809e-2F;
  p = p * f + 2.402264791363012e-1F;
  p = p * f + 6.931472028550421e-1F;
  p = p * f + 1.0F;
  const IntVec power = (IntVec)p + (((IntVec)shifted - (IntVec)splat(kMagic)) << 23);
  const Vec rest = x < kLowest ? Vec{} : x;  // 0, or NaN
  return x >= kLowest ? (Vec)power : rest;
}

// Types of elements in memory: float, uint16_t (the bits of bf16), _Float16. A vector or a number of each, as fp32.
// In vector code because the compiler does so by itself for bf16 only sometimes and for fp16 never (GCC 12).
static inline Vec widen(const float* from) { return load(from); }
static inline Vec widen(const uint16_t* from) {
  return (Vec)(__builtin_convertvector(*reinterpret_cast<const HalfVec*>(from), BitVec) << 16);
}
static inline Vec widen(const _Float16* from) {
  const BitVec bits = __builtin_convertvector(*reinterpret_cast<const HalfVec*>(from), BitVec);
  const Vec finite = (Vec)((bits & 0x7fffU) << 13) * 0x1p112F;  // exact, subnormal numbers too
  const BitVec infinite_or_nan = (BitVec)((bits & 0x7c00U) == 0x7c00U) & 0x7f800000U;
  return (Vec)((BitVec)finite | infinite_or_nan | (bits & 0x8000U) << 16);
}
#if MOH_VECTOR_BYTES == 64
static inline HalfOfVec widen_half(const float* from) { return load_half(from); }
static inline HalfOfVec widen_half(const uint16_t* from) {
  typedef uint16_t Bits __attribute__((vector_size(MOH_VECTOR_BYTES / 4), aligned(2), may_alias));
  typedef uint32_t Wide __attribute__((vector_size(MOH_VECTOR_BYTES / 2)));
  return (HalfOfVec)(__builtin_convertvector(*reinterpret_cast<const Bits*>(from), Wide) << 16);
}
#endif
static inline float widen_one(float value) { return value; }
static inline float widen_one(_Float16 value) { return static_cast<float>(value); }
static inline float widen_one(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}
static inline uint16_t to_bf16(float value) {  // to nearest even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

template <class T>
static inline void read_elements(float* to, const T* from, int64_t stride, int64_t size, float factor) {
  if (stride != 1) {
    for (int64_t i = 0; i < size; ++i) to[i] = widen_one(from[i * stride]) * factor;
    return;
  }
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) store(to + i, widen(from + i) * factor);
#if MOH_VECTOR_BYTES == 64
  if constexpr (!__is_same(T, _Float16)) {
    if (i + kHalf <= size) {
      store_half(to + i, widen_half(from + i) * factor);
      i += kHalf;
    }
  }
#endif
  for (; i < size; ++i) to[i] = widen_one(from[i]) * factor;
}

// to[i] = factor * from[i * stride] for i < size, zeros up to `padded`.
static inline void read_row(float* to, const char* from, int64_t stride, int64_t size, int64_t padded, DType dtype,
                            float factor) {
  if (dtype == DType::kFloat32) {
    read_elements(to, reinterpret_cast<const float*>(from), stride, size, factor);
  } else if (dtype == DType::kBFloat16) {
    read_elements(to, reinterpret_cast<const uint16_t*>(from), stride, size, factor);
  } else {
    read_elements(to, reinterpret_cast<const _Float16*>(from), stride, size, factor);
  }
  for (int64_t i = size; i < padded; ++i) to[i] = 0;
}

// to[i * stride] = factor * from[i].
static inline void write_row(char* to, int64_t stride, const float* from, int64_t size, DType dtype, float factor) {
  if (dtype == DType::kFloat32) {
    float* row = reinterpret_cast<float*>(to);
    if (stride == 1) {
      read_elements(row, from, 1, size, factor);
    } else {
      for (int64_t i = 0; i < size; ++i) row[i * stride] = factor * from[i];
    }
  } else if (dtype == DType::kBFloat16) {
    uint16_t* row = reinterpret_cast<uint16_t*>(to);
    for (int64_t i = 0; i < size; ++i) row[i * stride] = to_bf16(factor * from[i]);
  } else {
    _Float16* row = reinterpret_cast<_Float16*>(to);
    for (int64_t i = 0; i < size; ++i) row[i * stride] = static_cast<_Float16>(factor * from[i]);
  }
}

// to[i * stride] = 0.
static inline void clear_row(char* to, int64_t stride, int64_t size, DType dtype) {
  if (stride == 1) {
    memset(to, 0, static_cast<size_t>(size * size_of(dtype)));
  } else {
    for (int64_t i = 0; i < size; ++i) memset(to + i * stride * size_of(dtype), 0, static_cast<size_t>(size_of(dtype)));
  }
}

// An aligned array that lives as long as its owner, on one thread; contents are not initialised.
template <class T>
struct Buffer {
  WorkMemory memory;
  T* data;
  explicit Buffer(int64_t size)
      : memory(take_work_memory(static_cast<size_t>(size) * sizeof(T))), data(static_cast<T*>(memory.data)) {}
  ~Buffer() { return_work_memory(memory); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T& operator[](int64_t i) const { return data[i]; }
};

static inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace moh::kernels::MOH_ISA
