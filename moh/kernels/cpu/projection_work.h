// Shared by the head-skipping projections: fp32 rows in place or converted, packed panels, and a product whose rows are
// given by pointers, so that gathering the rows that selected a head copies nothing.
#pragma once

#include "moh/kernels/cpu/panel.h"
#include "moh/kernels/cpu/product.h"
#include "moh/kernels/cpu/row_lists.h"
#include "moh/kernels/projection.h"
#if defined(MOH_PAIRS)
  #include "moh/kernels/cpu/pairs.h"
#endif

namespace moh::kernels::MOH_ISA {

// What a product goes through along its depth: fp32 numbers, or words of two bf16 numbers (tiles.h).
#if defined(MOH_PAIRS)
using Step = Word;
static inline int64_t steps_of(int64_t size) { return (size + 1) / 2; }
#else
using Step = float;
static inline int64_t steps_of(int64_t size) { return size; }
#endif

// A panel of the right operand, [step][padded] of depth numbers.
static inline void pack_right(Step* to, const char* from, DType dtype, int64_t k_stride, int64_t n_stride,
                              int64_t depth, int64_t columns, int64_t padded) {
#if defined(MOH_PAIRS)
  (void)dtype;
  pack_pairs(to, from, k_stride, n_stride, depth, steps_of(depth), columns, padded);
#else
  pack_panel(to, from, dtype, k_stride, n_stride, depth, columns, padded);
#endif
}

// C[i][c_begin ..] (+)= sum_k A[i][a_begin + k] B[k][..], rows of A and C by pointer.
template <int rows, int vectors>
static inline void gathered_tile(int64_t depth, const Step* const* a, int64_t a_begin, const Step* b, int64_t b_row,
                                 float* const* c, int64_t c_begin, bool accumulate) {
  Vec sum[rows][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[i][j] = accumulate ? load(c[i] + c_begin + j * kWidth) : Vec{};
  }
  const Step* row[rows];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) row[i] = a[i] + a_begin;
  for (int64_t k = 0; k < depth; ++k) {
    decltype(load(b)) right[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) right[j] = load(b + k * b_row + j * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const auto left = splat(row[i][k]);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] = multiply_add(sum[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) store(c[i] + c_begin + j * kWidth, sum[i][j]);
  }
}

#if MOH_VECTOR_BYTES == 64
// The same for columns that end in half a vector.
template <int rows, int vectors>
static inline void gathered_tile_and_half(int64_t depth, const Step* const* a, int64_t a_begin, const Step* b,
                                          int64_t b_row, float* const* c, int64_t c_begin, bool accumulate) {
  constexpr int kFull = vectors > 0 ? vectors : 1;  // arrays have an element
  Vec sum[rows][kFull];
  HalfOfVec last[rows];
  #pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    const float* const from = c[i] + c_begin;
  #pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[i][j] = accumulate ? load(from + j * kWidth) : Vec{};
    last[i] = accumulate ? load_half(from + vectors * kWidth) : HalfOfVec{};
  }
  const Step* row[rows];
  #pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) row[i] = a[i] + a_begin;
  for (int64_t k = 0; k < depth; ++k) {
    decltype(load(b)) right[kFull];
  #pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) right[j] = load(b + k * b_row + j * kWidth);
    const auto right_half = load_half(b + k * b_row + vectors * kWidth);
  #pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const Step left = row[i][k];
  #pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] = multiply_add(sum[i][j], splat(left), right[j]);
      last[i] = multiply_add(last[i], splat_half(left), right_half);
    }
  }
  #pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    float* const to = c[i] + c_begin;
  #pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) store(to + j * kWidth, sum[i][j]);
    store_half(to + vectors * kWidth, last[i]);
  }
}
#endif

template <int rows, int vectors, bool half>
static inline void gathered_some(int64_t depth, const Step* const* a, int64_t a_begin, const Step* b, int64_t b_row,
                                 float* const* c, int64_t c_begin, bool accumulate) {
#if MOH_VECTOR_BYTES == 64
  if constexpr (half) {
    return gathered_tile_and_half<rows, vectors>(depth, a, a_begin, b, b_row, c, c_begin, accumulate);
  }
#endif
  if constexpr (!half) gathered_tile<rows, vectors>(depth, a, a_begin, b, b_row, c, c_begin, accumulate);
}

template <int vectors, bool half = false>
static inline void gathered_rows(int64_t rows, int64_t depth, const Step* const* a, int64_t a_begin, const Step* b,
                                 int64_t b_row, float* const* c, int64_t c_begin, bool accumulate) {
  switch (rows) {
    case 6:
      return gathered_some<6, vectors, half>(depth, a, a_begin, b, b_row, c, c_begin, accumulate);
    case 5:
      return gathered_some<5, vectors, half>(depth, a, a_begin, b, b_row, c, c_begin, accumulate);
    case 4:
      return gathered_some<4, vectors, half>(depth, a, a_begin, b, b_row, c, c_begin, accumulate);
    case 3:
      return gathered_some<3, vectors, half>(depth, a, a_begin, b, b_row, c, c_begin, accumulate);
    case 2:
      return gathered_some<2, vectors, half>(depth, a, a_begin, b, b_row, c, c_begin, accumulate);
    case 1:
      return gathered_some<1, vectors, half>(depth, a, a_begin, b, b_row, c, c_begin, accumulate);
    default:
      return;
  }
}

// At most kRows rows, at most kPanel columns, a multiple of kHalf.
static inline void gathered_product(int64_t rows, int64_t columns, int64_t depth, const Step* const* a, int64_t a_begin,
                                    const Step* b, int64_t b_row, float* const* c, int64_t c_begin, bool accumulate) {
#if MOH_VECTOR_BYTES == 64
  if (columns % kWidth != 0) {
    switch (columns / kWidth) {
      case 0:
        return gathered_rows<0, true>(rows, depth, a, a_begin, b, b_row, c, c_begin, accumulate);
      case 1:
        return gathered_rows<1, true>(rows, depth, a, a_begin, b, b_row, c, c_begin, accumulate);
      case 2:
        return gathered_rows<2, true>(rows, depth, a, a_begin, b, b_row, c, c_begin, accumulate);
      default:
        return gathered_rows<3, true>(rows, depth, a, a_begin, b, b_row, c, c_begin, accumulate);
    }
  }
#endif
  switch (columns / kWidth) {
    case 1:
      return gathered_rows<1>(rows, depth, a, a_begin, b, b_row, c, c_begin, accumulate);
    case 2:
      return gathered_rows<2>(rows, depth, a, a_begin, b, b_row, c, c_begin, accumulate);
#if MOH_VECTOR_BYTES == 64
    case 3:
      return gathered_rows<3>(rows, depth, a, a_begin, b, b_row, c, c_begin, accumulate);
    case 4:
      return gathered_rows<4>(rows, depth, a, a_begin, b, b_row, c, c_begin, accumulate);
#endif
    default:
      return;
  }
}

// body(row) of every row, by all threads.
template <class Body>
void for_each_rows(const Parallel& parallel, int64_t rows, const Body& body) {
  constexpr int64_t kRowsAnItem = 64;
  for_each_item(parallel, (rows + kRowsAnItem - 1) / kRowsAnItem, [&](int64_t item) {
    for (int64_t r = item * kRowsAnItem; r < min_of((item + 1) * kRowsAnItem, rows); ++r) body(r);
  });
}

// Rows of fp32 numbers side by side: a tensor in place, or a converted copy of it.
struct PlainRows {
  Buffer<float> own;
  const float* data;
  int64_t row_size, part_size;  // elements from row to row, and from part (head) to part
  // tensor [rows][parts][size]; only parts whose gate is not zero are read, all if `gates` is null.
  PlainRows(const void* tensor, DType dtype, int64_t rows, int64_t row_stride, int64_t parts, int64_t part_stride,
            int64_t size, int64_t stride, const float* gates, const Parallel& parallel)
      : own(dtype == DType::kFloat32 && stride == 1 ? 0 : rows * parts * size) {
    if (dtype == DType::kFloat32 && stride == 1) {
      data = static_cast<const float*>(tensor);
      row_size = row_stride;
      part_size = part_stride;
      return;
    }
    data = own.data;
    row_size = parts * size;
    part_size = size;
    for_each_rows(parallel, rows, [&](int64_t r) {
      for (int64_t part = 0; part < parts; ++part) {
        if (gates != nullptr && gates[r * parts + part] == 0) continue;
        read_row(&own[r * row_size + part * size], byte_at(tensor, r * row_stride + part * part_stride, dtype), stride,
                 size, size, dtype, 1.0F);
      }
    });
  }
  const float* at(int64_t row, int64_t part) const { return data + row * row_size + part * part_size; }
};

#if defined(MOH_PAIRS)
// The same rows as the steps of a product: in place where numbers lie side by side in whole, aligned words.
struct LeftRows {
  Buffer<Word> own;
  const Word* data;
  int64_t row_size, part_size;  // words from row to row, and from part to part
  static bool in_place(const void* tensor, int64_t row_stride, int64_t part_stride, int64_t size, int64_t stride) {
    return stride == 1 && size % 2 == 0 && row_stride % 2 == 0 && part_stride % 2 == 0 &&
           reinterpret_cast<uintptr_t>(tensor) % sizeof(Word) == 0;
  }
  LeftRows(const void* tensor, DType, int64_t rows, int64_t row_stride, int64_t parts, int64_t part_stride,
           int64_t size, int64_t stride, const float* gates, const Parallel& parallel)
      : own(in_place(tensor, row_stride, part_stride, size, stride) ? 0 : rows * parts * steps_of(size)) {
    if (in_place(tensor, row_stride, part_stride, size, stride)) {
      data = static_cast<const Word*>(tensor);
      row_size = row_stride / 2;
      part_size = part_stride / 2;
      return;
    }
    data = own.data;
    part_size = steps_of(size);
    row_size = parts * part_size;
    for_each_rows(parallel, rows, [&](int64_t r) {
      for (int64_t part = 0; part < parts; ++part) {
        if (gates != nullptr && gates[r * parts + part] == 0) continue;
        read_words(&own[r * row_size + part * part_size],
                   byte_at(tensor, r * row_stride + part * part_stride, DType::kBFloat16), stride, size, part_size);
      }
    });
  }
  const Word* at(int64_t row, int64_t part) const { return data + row * row_size + part * part_size; }
};
#else
using LeftRows = PlainRows;
#endif

// sums[0 .. 4) += products of a and b in vectors; returns the sum of what is left over.
template <class T>
static inline float add_products(Vec* sums, const float* a, const T* b, int64_t size) {
  int64_t i = 0;
  for (; i + 4 * kWidth <= size; i += 4 * kWidth) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[j] += load(a + i + j * kWidth) * widen(b + i + j * kWidth);
  }
  for (; i + kWidth <= size; i += kWidth) sums[0] += load(a + i) * widen(b + i);
  float rest = 0;
  for (; i < size; ++i) rest += a[i] * widen_one(b[i]);
  return rest;
}

static inline float add_products(Vec* sums, const float* a, const char* b, int64_t size, DType dtype) {
  if (dtype == DType::kFloat32) return add_products(sums, a, reinterpret_cast<const float*>(b), size);
  if (dtype == DType::kBFloat16) return add_products(sums, a, reinterpret_cast<const uint16_t*>(b), size);
  return add_products(sums, a, reinterpret_cast<const _Float16*>(b), size);
}

static inline float total_of(const Vec* sums) { return sum_in((sums[0] + sums[1]) + (sums[2] + sums[3])); }

static inline float element(const void* data, int64_t i, DType dtype) {
  float value;
  read_row(&value, byte_at(data, i, dtype), 1, 1, 1, dtype, 1.0F);
  return value;
}

constexpr int64_t kFewProjected = 4;  // so few rows that packing the weights would cost more than the products

}  // namespace moh::kernels::MOH_ISA
