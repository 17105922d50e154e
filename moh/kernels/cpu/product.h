// The one product of these kernels: C[M x N] (+)= A[M x K] B[K x N] for small matrices in cache, by register tiles.
// Numbers of A and B are fp32, or words of two bf16 numbers that lie beside one another along K (tiles.h).
//   A is read one number at a time, a[i * a_row + k * a_k], so it may be transposed (a_row = 1);
//   B rows are contiguous, b[k * b_row + j]; N is a multiple of the vector width;
//   C rows are contiguous, c[i * c_row + j].
#pragma once

#include "moh/kernels/cpu/simd.h"

#if defined(MOH_PAIRS)
  #include "moh/kernels/cpu/tiles.h"
#endif

namespace moh::kernels::MOH_ISA {

static inline Vec multiply_add(Vec sum, Vec left, Vec right) { return sum + left * right; }
#if MOH_VECTOR_BYTES == 64
static inline HalfOfVec multiply_add(HalfOfVec sum, HalfOfVec left, HalfOfVec right) { return sum + left * right; }
#endif
#if defined(MOH_PAIRS)
static inline Vec multiply_add(Vec sum, BitVec left, BitVec right) { return add_pairs(sum, left, right); }
  #if MOH_VECTOR_BYTES == 64
static inline HalfOfVec multiply_add(HalfOfVec sum, HalfOfBits left, HalfOfBits right) {
  return add_pairs(sum, left, right);
}
  #endif
#endif

template <int rows, int vectors, class T>
static inline void product_tile(int64_t depth, const T* a, int64_t a_row, int64_t a_k, const T* b, int64_t b_row,
                                float* c, int64_t c_row, bool accumulate) {
  Vec sum[rows][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[i][j] = accumulate ? load(c + i * c_row + j * kWidth) : Vec{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    decltype(load(b)) right[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) right[j] = load(b + k * b_row + j * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const auto left = splat(a[i * a_row + k * a_k]);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] = multiply_add(sum[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) store(c + i * c_row + j * kWidth, sum[i][j]);
  }
}

template <int vectors, class T>
static inline void product_rows(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_k, const T* b,
                                int64_t b_row, float* c, int64_t c_row, bool accumulate) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    product_tile<kRows, vectors>(depth, a + i * a_row, a_row, a_k, b, b_row, c + i * c_row, c_row, accumulate);
  }
  a += i * a_row;
  c += i * c_row;
  switch (rows - i) {
    case 5:
      return product_tile<5, vectors>(depth, a, a_row, a_k, b, b_row, c, c_row, accumulate);
    case 4:
      return product_tile<4, vectors>(depth, a, a_row, a_k, b, b_row, c, c_row, accumulate);
    case 3:
      return product_tile<3, vectors>(depth, a, a_row, a_k, b, b_row, c, c_row, accumulate);
    case 2:
      return product_tile<2, vectors>(depth, a, a_row, a_k, b, b_row, c, c_row, accumulate);
    case 1:
      return product_tile<1, vectors>(depth, a, a_row, a_k, b, b_row, c, c_row, accumulate);
    default:
      return;
  }
}

// One panel of at most kPanel columns.
template <class T>
static inline void product(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_row, int64_t a_k,
                           const T* b, int64_t b_row, float* c, int64_t c_row, bool accumulate) {
  switch (columns / kWidth) {
    case 1:
      return product_rows<1>(rows, depth, a, a_row, a_k, b, b_row, c, c_row, accumulate);
    case 2:
      return product_rows<2>(rows, depth, a, a_row, a_k, b, b_row, c, c_row, accumulate);
#if MOH_VECTOR_BYTES == 64
    case 3:
      return product_rows<3>(rows, depth, a, a_row, a_k, b, b_row, c, c_row, accumulate);
    case 4:
      return product_rows<4>(rows, depth, a, a_row, a_k, b, b_row, c, c_row, accumulate);
#endif
    default:
      return;
  }
}

}  // namespace moh::kernels::MOH_ISA
