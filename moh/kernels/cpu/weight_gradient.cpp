// weight[h] = sum over the rows that selected head h of heads[r,h,:]^T x[r,:], on CPUs.
//
// A thread takes a few heads and a few panels of columns. Block by block of rows it copies x once for all its heads,
// the selected rows of each head once for all its panels, and adds the D x kPanel products, the rows of x by their
// number in the block. Rows are added in their order: the result is the same for any number of threads.
#include "moh/kernels/cpu/projection_work.h"

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int64_t kBlockRows = 128;           // x
constexpr int64_t kItemColumns = 4 * kPanel;  // share one copy of the heads' rows
constexpr int64_t kItemHeads = 4;             // share one copy of x

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
void selected_rows(int64_t rows, int64_t depth, const float* a, int64_t a_k, const float* const* b, float* c,
                   int64_t c_row) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    selected_tile<kRows, vectors>(depth, a + i, a_k, b, c + i * c_row, c_row);
  }
  for (; i + 2 <= rows; i += 2) {
    selected_tile<2, vectors>(depth, a + i, a_k, b, c + i * c_row, c_row);
  }
  if (i < rows) selected_tile<1, vectors>(depth, a + i, a_k, b, c + i * c_row, c_row);
}

void selected_product(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_k, const float* const* b,
                      float* c, int64_t c_row) {
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

// Columns [first_column, first_column + columns) of the gradient of head h from its sums [D][kItemColumns].
void write_gradient(const ProjectionParams& p, int64_t h, int64_t first_column, int64_t columns, const float* sums) {
  const int64_t place = h * p.out.stride[0] + first_column * p.out.stride[2];
  char* out = static_cast<char*>(p.out.data) + place * size_of(p.dtype);
  if (p.out.stride[1] != 1) {
    for (int64_t d = 0; d < p.head_dim; ++d) {
      write_row(out + d * p.out.stride[1] * size_of(p.dtype), p.out.stride[2], sums + d * kItemColumns, columns,
                p.dtype, 1.0F);
    }
    return;
  }
  if (p.dtype == DType::kFloat32 && p.head_dim % kWidth == 0) {
    pack_columns(reinterpret_cast<float*>(out), sums, kItemColumns, columns, p.head_dim, p.head_dim, p.out.stride[2]);
    return;
  }
  const Buffer<float> column(p.head_dim);
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t d = 0; d < p.head_dim; ++d) column[d] = sums[d * kItemColumns + c];
    write_row(out + c * p.out.stride[2] * size_of(p.dtype), 1, column.data, p.head_dim, p.dtype, 1.0F);
  }
}

}  // namespace

void weight_gradient(const ProjectionParams& p) {
  const Selection& lists = p.selection;
  const int64_t padded = round_up(p.head_dim, kWidth), column_groups = (p.width + kItemColumns - 1) / kItemColumns;
  // Fewer heads an item where the threads would run out of items.
  const int64_t wanted = 4 * p.parallel.num_threads / max_of(1, column_groups);
  const int64_t item_heads = max_of(1, min_of(kItemHeads, p.selection.num_heads / max_of(1, wanted)));
  const int64_t head_groups = (p.selection.num_heads + item_heads - 1) / item_heads;
  for_each_item(p.parallel, head_groups * column_groups, [&](int64_t item) {
    const int64_t first_head = item / column_groups * item_heads;
    const int64_t end_head = min_of(first_head + item_heads, p.selection.num_heads);
    const int64_t first_column = item % column_groups * kItemColumns;
    const int64_t columns = min_of(kItemColumns, p.width - first_column), sums_size = padded * kItemColumns;
    const Buffer<float> x_rows(kBlockRows * kItemColumns), head_rows(kBlockRows * padded);
    const Buffer<float> sums(item_heads * sums_size);
    memset(sums.data, 0, static_cast<size_t>(item_heads * sums_size) * sizeof(float));
    int64_t next[kItemHeads] = {};  // of each head's list
    for (int64_t begin = 0; begin < p.selection.num_rows; begin += kBlockRows) {
      const int64_t end = min_of(begin + kBlockRows, p.selection.num_rows);
      for (int64_t r = begin; r < end; ++r) {
        for (int64_t panel = 0; panel < columns; panel += kPanel) {  // each contiguous
          const int64_t size = min_of(kPanel, columns - panel), width = round_up(size, kWidth);
          read_row(&x_rows[panel * kBlockRows + (r - begin) * width],
                   byte_at(p.x.data, r * p.x.stride[0] + (first_column + panel) * p.x.stride[1], p.dtype),
                   p.x.stride[1], size, width, p.dtype, 1.0F);
        }
      }
      for (int64_t h = first_head; h < end_head; ++h) {
        int32_t number[kBlockRows];
        int64_t depth = 0;
        for (int64_t& i = next[h - first_head]; i < lists.count(h) && lists.begin(h)[i] < end; ++i, ++depth) {
          const int64_t r = lists.begin(h)[i];
          number[depth] = static_cast<int32_t>(r - begin);
          read_row(&head_rows[depth * padded],
                   byte_at(p.heads.data, r * p.heads.stride[0] + h * p.heads.stride[1], p.dtype), p.heads.stride[2],
                   p.head_dim, padded, p.dtype, 1.0F);
        }
        for (int64_t panel = 0; panel < columns; panel += kPanel) {
          const int64_t width = round_up(min_of(kPanel, columns - panel), kWidth);
          const float* selected[kBlockRows];
          for (int64_t k = 0; k < depth; ++k) selected[k] = &x_rows[panel * kBlockRows + number[k] * width];
          selected_product(p.head_dim, width, depth, head_rows.data, padded, selected,
                           &sums[(h - first_head) * sums_size + panel], kItemColumns);
        }
      }
    }
    for (int64_t h = first_head; h < end_head; ++h) {
      write_gradient(p, h, first_column, columns, &sums[(h - first_head) * sums_size]);
    }
  });
}

}  // namespace moh::kernels::MOH_ISA
