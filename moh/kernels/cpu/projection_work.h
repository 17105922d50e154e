// Shared by the head-skipping projections: fp32 rows in place or converted, packed panels, and a product whose rows are
// given by pointers, so that gathering the rows that selected a head copies nothing.
#pragma once

#include "moh/kernels/cpu/product.h"
#include "moh/kernels/cpu/row_lists.h"
#include "moh/kernels/projection.h"

namespace moh::kernels::MOH_ISA {

// C[i][0 .. vectors) (+)= sum_k A[i][k] B[k][..], rows of A and C by pointer.
template <int rows, int vectors>
static inline void gathered_tile(int64_t depth, const float* const* a, const float* b, int64_t b_row, float* const* c,
                                 bool accumulate) {
  Vec sum[rows][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[i][j] = accumulate ? load(c[i] + j * kWidth) : Vec{};
  }
  const float* row[rows];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) row[i] = a[i];
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) right[j] = load(b + k * b_row + j * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const Vec left = splat(row[i][k]);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) store(c[i] + j * kWidth, sum[i][j]);
  }
}

template <int vectors>
static inline void gathered_rows(int64_t rows, int64_t depth, const float* const* a, const float* b, int64_t b_row,
                                 float* const* c, bool accumulate) {
  switch (rows) {
    case 6:
      return gathered_tile<6, vectors>(depth, a, b, b_row, c, accumulate);
    case 5:
      return gathered_tile<5, vectors>(depth, a, b, b_row, c, accumulate);
    case 4:
      return gathered_tile<4, vectors>(depth, a, b, b_row, c, accumulate);
    case 3:
      return gathered_tile<3, vectors>(depth, a, b, b_row, c, accumulate);
    case 2:
      return gathered_tile<2, vectors>(depth, a, b, b_row, c, accumulate);
    case 1:
      return gathered_tile<1, vectors>(depth, a, b, b_row, c, accumulate);
    default:
      return;
  }
}

// At most kRows rows, at most kPanel columns.
static inline void gathered_product(int64_t rows, int64_t columns, int64_t depth, const float* const* a, const float* b,
                                    int64_t b_row, float* const* c, bool accumulate) {
  switch (columns / kWidth) {
    case 1:
      return gathered_rows<1>(rows, depth, a, b, b_row, c, accumulate);
    case 2:
      return gathered_rows<2>(rows, depth, a, b, b_row, c, accumulate);
#if MOH_VECTOR_BYTES == 64
    case 3:
      return gathered_rows<3>(rows, depth, a, b, b_row, c, accumulate);
    case 4:
      return gathered_rows<4>(rows, depth, a, b, b_row, c, accumulate);
#endif
    default:
      return;
  }
}

static inline const char* byte_at(const void* data, int64_t element, DType dtype) {
  return static_cast<const char*>(data) + element * size_of(dtype);
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
    constexpr int64_t kRowsAnItem = 64;
    for_each_item(parallel, (rows + kRowsAnItem - 1) / kRowsAnItem, [&](int64_t item) {
      for (int64_t r = item * kRowsAnItem; r < min_of((item + 1) * kRowsAnItem, rows); ++r) {
        for (int64_t part = 0; part < parts; ++part) {
          if (gates != nullptr && gates[r * parts + part] == 0) continue;
          read_row(&own[r * row_size + part * size], byte_at(tensor, r * row_stride + part * part_stride, dtype),
                   stride, size, size, dtype, 1.0F);
        }
      }
    });
  }
  const float* at(int64_t row, int64_t part) const { return data + row * row_size + part * part_size; }
};

// to[k][n] = from[k * k_stride + n * n_stride] as fp32 for k < depth, n < columns; zeros up to `padded` columns.
static inline void pack_panel(float* to, const char* from, DType dtype, int64_t k_stride, int64_t n_stride,
                              int64_t depth, int64_t columns, int64_t padded) {
  if (k_stride != 1) {
    for (int64_t k = 0; k < depth; ++k) {
      read_row(to + k * padded, from + k * k_stride * size_of(dtype), n_stride, columns, padded, dtype, 1.0F);
    }
    return;
  }
  // Columns lie side by side: transposed in squares that a cache holds, whatever the distance of the columns.
  constexpr int64_t kSquare = 32;
  float square[kSquare][kSquare + 1];
  for (int64_t n = 0; n < padded; n += kSquare) {
    const int64_t width = min_of(kSquare, padded - n);
    for (int64_t k = 0; k < depth; k += kSquare) {
      const int64_t height = min_of(kSquare, depth - k);
      for (int64_t j = 0; j < width; ++j) {
        if (n + j < columns) {
          read_row(square[j], from + (k + (n + j) * n_stride) * size_of(dtype), 1, height, height, dtype, 1.0F);
        } else {
          for (int64_t i = 0; i < height; ++i) square[j][i] = 0;
        }
      }
      for (int64_t i = 0; i < height; ++i) {
        for (int64_t j = 0; j < width; ++j) to[(k + i) * padded + n + j] = square[j][i];
      }
    }
  }
}

template <class T>
static inline float dot(const float* a, const T* b, int64_t size) {
  Vec sum[4] = {Vec{}, Vec{}, Vec{}, Vec{}};
  int64_t i = 0;
  for (; i + 4 * kWidth <= size; i += 4 * kWidth) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[j] += load(a + i + j * kWidth) * widen(b + i + j * kWidth);
  }
  for (; i + kWidth <= size; i += kWidth) sum[0] += load(a + i) * widen(b + i);
  float total = sum_in((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; i < size; ++i) total += a[i] * widen_one(b[i]);
  return total;
}

static inline float dot(const float* a, const char* b, int64_t size, DType dtype) {
  if (dtype == DType::kFloat32) return dot(a, reinterpret_cast<const float*>(b), size);
  if (dtype == DType::kBFloat16) return dot(a, reinterpret_cast<const uint16_t*>(b), size);
  return dot(a, reinterpret_cast<const _Float16*>(b), size);
}

static inline float element(const void* data, int64_t i, DType dtype) {
  float value;
  read_row(&value, byte_at(data, i, dtype), 1, 1, 1, dtype, 1.0F);
  return value;
}

constexpr int64_t kFewProjected = 4;  // so few rows that packing the weights would cost more than the products

}  // namespace moh::kernels::MOH_ISA
