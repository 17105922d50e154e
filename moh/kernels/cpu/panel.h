// Packing of matrices into panels of at most kPanel columns, [k][column] in fp32: the B operand of the products.
#pragma once

#include "moh/kernels/cpu/simd.h"

namespace moh::kernels::MOH_ISA {

static inline const char* byte_at(const void* data, int64_t element, DType dtype) {
  return static_cast<const char*>(data) + element * size_of(dtype);
}

// Rows become columns, kWidth x kWidth numbers in registers: rows i and i ^ half exchange halves, for every half.
template <int half>
static inline void exchange(Vec* rows) {
  IntVec low = {}, high = {};
#pragma GCC unroll 16
  for (int lane = 0; lane < kWidth; ++lane) {
    low[lane] = (lane & half) != 0 ? kWidth + lane - half : lane;
    high[lane] = (lane & half) != 0 ? kWidth + lane : lane + half;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if ((i & half) != 0) continue;
    const Vec a = rows[i], b = rows[i + half];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + half] = __builtin_shuffle(a, b, high);
  }
}
static inline void transpose(Vec* rows) {
#if MOH_VECTOR_BYTES == 64
  exchange<8>(rows);
#endif
#if MOH_VECTOR_BYTES >= 32
  exchange<4>(rows);
#endif
  exchange<2>(rows);
  exchange<1>(rows);
}

// At most a vector of numbers, zeros beyond. Half a vector is what heads of 24 and 72 leave: a copy of fixed size.
template <class T>
static inline Vec widen_some(const T* from, int64_t count) {
  if (count >= kWidth) return widen(from);
  T part[kWidth] = {};
  if (count == kWidth / 2) {
    memcpy(part, from, kWidth / 2 * sizeof(T));
  } else {
    for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  }
  return widen(part);
}
static inline void store_first(float* to, const Vec& value, int64_t count) {
  if (count >= kWidth) {
    store(to, value);
  } else if (count == kWidth / 2) {
    memcpy(to, &value, kWidth / 2 * sizeof(float));
  } else {
    memcpy(to, &value, static_cast<size_t>(count) * sizeof(float));
  }
}

// The case of pack_panel where a column lies contiguous in memory; rows of `to` are to_row apart.
template <class T>
static inline void pack_columns(float* to, const T* from, int64_t n_stride, int64_t depth, int64_t columns,
                                int64_t padded, int64_t to_row) {
  for (int64_t n = 0; n < padded; n += kWidth) {
    const int64_t valid = columns - n, width = min_of(kWidth, padded - n);
    for (int64_t k = 0; k < depth; k += kWidth) {
      const int64_t deep = min_of(kWidth, depth - k);
      Vec rows[kWidth];
      if (valid >= kWidth && deep == kWidth && width == kWidth) {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) rows[i] = widen(from + k + (n + i) * n_stride);
        transpose(rows);
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) store(to + (k + i) * to_row + n, rows[i]);
        continue;
      }
      for (int64_t i = 0; i < kWidth; ++i) {
        rows[i] = i < valid ? widen_some(from + k + (n + i) * n_stride, deep) : Vec{};
      }
      transpose(rows);
      for (int64_t i = 0; i < deep; ++i) store_first(to + (k + i) * to_row + n, rows[i], width);
    }
  }
}

// to[k][n] = from[k * k_stride + n * n_stride] for k < depth, n < columns; zeros up to `padded` columns.
static inline void pack_panel(float* to, const char* from, DType dtype, int64_t k_stride, int64_t n_stride,
                              int64_t depth, int64_t columns, int64_t padded) {
  if (k_stride != 1) {
    for (int64_t k = 0; k < depth; ++k) {
      read_row(to + k * padded, from + k * k_stride * size_of(dtype), n_stride, columns, padded, dtype, 1.0F);
    }
  } else if (dtype == DType::kFloat32) {
    pack_columns(to, reinterpret_cast<const float*>(from), n_stride, depth, columns, padded, padded);
  } else if (dtype == DType::kBFloat16) {
    pack_columns(to, reinterpret_cast<const uint16_t*>(from), n_stride, depth, columns, padded, padded);
  } else {
    pack_columns(to, reinterpret_cast<const _Float16*>(from), n_stride, depth, columns, padded, padded);
  }
}

}  // namespace moh::kernels::MOH_ISA
