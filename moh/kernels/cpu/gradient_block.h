// The products of a block of rows for weight_gradient.cpp, in fp32: x copied once for all heads of an item.
#pragma once

#include "moh/kernels/cpu/projection_work.h"

namespace moh::kernels::MOH_ISA {

constexpr int64_t kBlockRows = 128;           // of x
constexpr int64_t kItemColumns = 4 * kPanel;  // share one copy of the heads' rows

// C[rows x vectors] += sum_k A[k][i] B[k][..], rows of B by pointer.
template <int rows, int vectors>
static inline void selected_tile(int64_t depth, const float* a, int64_t a_k, const float* const* b, float* c,
                                 int64_t c_row) {
  Vec sum[rows][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[i][j] = load(c + i * c_row + j * kWidth);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) right[j] = load(b[k] + j * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const Vec left = splat(a[k * a_k + i]);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) store(c + i * c_row + j * kWidth, sum[i][j]);
  }
}

template <int vectors>
static inline void selected_rows(int64_t rows, int64_t depth, const float* a, int64_t a_k, const float* const* b,
                                 float* c, int64_t c_row) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    selected_tile<kRows, vectors>(depth, a + i, a_k, b, c + i * c_row, c_row);
  }
  for (; i + 2 <= rows; i += 2) {
    selected_tile<2, vectors>(depth, a + i, a_k, b, c + i * c_row, c_row);
  }
  if (i < rows) selected_tile<1, vectors>(depth, a + i, a_k, b, c + i * c_row, c_row);
}

static inline void selected_product(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_k,
                                    const float* const* b, float* c, int64_t c_row) {
  switch (columns / kWidth) {
    case 1:
      return selected_rows<1>(rows, depth, a, a_k, b, c, c_row);
    case 2:
      return selected_rows<2>(rows, depth, a, a_k, b, c, c_row);
#if MOH_VECTOR_BYTES == 64
    case 3:
      return selected_rows<3>(rows, depth, a, a_k, b, c, c_row);
    case 4:
      return selected_rows<4>(rows, depth, a, a_k, b, c, c_row);
#endif
    default:
      return;
  }
}

struct BlockProduct {
  Buffer<float> x_rows, head_rows;
  int64_t padded;
  explicit BlockProduct(int64_t padded_dim)
      : x_rows(kBlockRows * kItemColumns), head_rows(kBlockRows * padded_dim), padded(padded_dim) {}

  // Rows `begin` to `end` of x.
  void take_block(const ProjectionParams& p, int64_t begin, int64_t end, int64_t first_column, int64_t columns) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t panel = 0; panel < columns; panel += kPanel) {  // each contiguous
        const int64_t size = min_of(kPanel, columns - panel), width = round_up(size, kWidth);
        read_row(&x_rows[panel * kBlockRows + (r - begin) * width],
                 byte_at(p.x.data, r * p.x.stride[0] + (first_column + panel) * p.x.stride[1], p.dtype), p.x.stride[1],
                 size, width, p.dtype, 1.0F);
      }
    }
  }

  // sums[D][kItemColumns] += the products of the block's rows that use head h.
  void add(const ProjectionParams& p, int64_t h, const HeadRows& rows, int64_t begin, int64_t, int64_t columns,
           float* sums) {
    for (int64_t k = 0; k < rows.count; ++k) {
      read_row(&head_rows[k * padded],
               byte_at(p.heads.data, rows.rows[k] * p.heads.stride[0] + h * p.heads.stride[1], p.dtype),
               p.heads.stride[2], p.head_dim, padded, p.dtype, 1.0F);
    }
    for (int64_t panel = 0; panel < columns; panel += kPanel) {
      const int64_t width = round_up(min_of(kPanel, columns - panel), kWidth);
      const float* selected[kBlockRows];
      for (int64_t k = 0; k < rows.count; ++k) {
        selected[k] = &x_rows[panel * kBlockRows + (rows.rows[k] - begin) * width];
      }
      selected_product(p.head_dim, width, rows.count, head_rows.data, padded, selected, sums + panel, kItemColumns);
    }
  }
};

}  // namespace moh::kernels::MOH_ISA
