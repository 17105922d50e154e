// Vectors of one instruction set, by GCC's vector extensions: the same source for AVX-512, AVX2 and any other CPU.
// Included by sources that are compiled once per ISA; everything lies in the namespace MOH_ISA, and nothing here is a
// std template, or the linker might keep the AVX-512 copy of a shared inline function.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "moh/kernels/head_attention.h"

#ifndef MOH_ISA
  #define MOH_ISA portable
#endif
#ifndef MOH_VECTOR_BYTES
  #define MOH_VECTOR_BYTES 16
#endif

namespace moh::kernels {
[[noreturn]] void fail_for_memory(size_t bytes);  // moh/kernels/head_attention.cpp
}

namespace moh::kernels::MOH_ISA {

typedef float Vec __attribute__((vector_size(MOH_VECTOR_BYTES)));
typedef int32_t IntVec __attribute__((vector_size(MOH_VECTOR_BYTES)));
typedef float UnalignedVec __attribute__((vector_size(MOH_VECTOR_BYTES), aligned(4), may_alias));

constexpr int kWidth = MOH_VECTOR_BYTES / 4;  // floats in a vector
// Register tile of the products: kRows x kVectors accumulators, so that they, a row of B and a broadcast fit into the
// 32 registers of AVX-512 or the 16 of the others.
constexpr int kRows = 6;
constexpr int kVectors = MOH_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kPanel = kVectors * kWidth;  // columns of B that one tile covers

static inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
static inline void store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }
static inline Vec splat(float value) { return Vec{} + value; }
static inline Vec max_of(Vec a, Vec b) { return a > b ? a : b; }
static inline float max_in(Vec v) {
  float best = v[0];
  for (int i = 1; i < kWidth; ++i) best = v[i] > best ? v[i] : best;
  return best;
}
static inline float sum_in(Vec v) {
  float sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += v[i];
  return sum;
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

static inline float from_bf16(uint16_t bits) {
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

// to[i] = factor * from[i * stride] for i < size, zeros up to `padded`.
static inline void read_row(float* to, const char* from, int64_t stride, int64_t size, int64_t padded, DType dtype,
                            float factor) {
  int64_t i = 0;
  if (dtype == DType::kFloat32) {
    const float* row = reinterpret_cast<const float*>(from);
    if (stride == 1) {
      for (; i < size; ++i) to[i] = factor * row[i];
    } else {
      for (; i < size; ++i) to[i] = factor * row[i * stride];
    }
  } else if (dtype == DType::kBFloat16) {
    const uint16_t* row = reinterpret_cast<const uint16_t*>(from);
    if (stride == 1) {
      for (; i < size; ++i) to[i] = factor * from_bf16(row[i]);
    } else {
      for (; i < size; ++i) to[i] = factor * from_bf16(row[i * stride]);
    }
  } else {
    const _Float16* row = reinterpret_cast<const _Float16*>(from);
    for (; i < size; ++i) to[i] = factor * static_cast<float>(row[i * stride]);
  }
  for (; i < padded; ++i) to[i] = 0;
}

// to[i * stride] = factor * from[i].
static inline void write_row(char* to, int64_t stride, const float* from, int64_t size, DType dtype, float factor) {
  if (dtype == DType::kFloat32) {
    float* row = reinterpret_cast<float*>(to);
    if (stride == 1) {
      for (int64_t i = 0; i < size; ++i) row[i] = factor * from[i];
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

// An aligned array that lives as long as its owner; contents are not initialised. Error when memory runs out.
template <class T>
struct Buffer {
  T* data = nullptr;
  explicit Buffer(int64_t size) {
    const size_t bytes = (static_cast<size_t>(size > 0 ? size : 1) * sizeof(T) + 63) / 64 * 64;
    data = static_cast<T*>(aligned_alloc(64, bytes));
    if (data == nullptr) fail_for_memory(bytes);
  }
  ~Buffer() { free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T& operator[](int64_t i) const { return data[i]; }
};

static inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace moh::kernels::MOH_ISA
