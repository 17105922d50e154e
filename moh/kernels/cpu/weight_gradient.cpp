// weight[h] = sum over the rows that selected head h of heads[r,h,:]^T x[r,:], on CPUs.
//
// A thread takes one head and a few panels of columns; the selected rows are copied block by block into buffers that
// the products of all D x kPanel tiles then read from cache. Rows are added in their order: the result is the same for
// any number of threads.
#include "moh/kernels/cpu/projection_work.h"

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int64_t kDepth = 256;               // rows added at a time: 64 KB of x a panel
constexpr int64_t kItemColumns = 4 * kPanel;  // share one copy of the head's rows

}  // namespace

void weight_gradient(const ProjectionParams& p) {
  const RowLists lists(p.gates, 1, p.rows, p.num_heads, 0);
  const int64_t padded = round_up(p.head_dim, kWidth), groups = (p.width + kItemColumns - 1) / kItemColumns;
  for_each_item(p.parallel, p.num_heads * groups, [&](int64_t item) {
    const int64_t h = item / groups, first_column = item % groups * kItemColumns;
    const int64_t columns = min_of(kItemColumns, p.width - first_column);
    const Buffer<float> head_rows(kDepth * padded), x_rows(kDepth * kPanel), sums(padded * kItemColumns);
    memset(sums.data, 0, static_cast<size_t>(padded * kItemColumns) * sizeof(float));
    for (int64_t begin = 0; begin < lists.count(h); begin += kDepth) {
      const int64_t depth = min_of(kDepth, lists.count(h) - begin);
      const int32_t* rows = lists.begin(h) + begin;
      for (int64_t k = 0; k < depth; ++k) {
        read_row(&head_rows[k * padded],
                 byte_at(p.heads.data, rows[k] * p.heads.stride[0] + h * p.heads.stride[1], p.dtype), p.heads.stride[2],
                 p.head_dim, padded, p.dtype, 1.0F);
      }
      for (int64_t panel = 0; panel < columns; panel += kPanel) {
        const int64_t size = min_of(kPanel, columns - panel), width = round_up(size, kWidth);
        for (int64_t k = 0; k < depth; ++k) {
          read_row(&x_rows[k * width],
                   byte_at(p.x.data, rows[k] * p.x.stride[0] + (first_column + panel) * p.x.stride[1], p.dtype),
                   p.x.stride[1], size, width, p.dtype, 1.0F);
        }
        product(p.head_dim, width, depth, head_rows.data, 1, padded, x_rows.data, width, &sums[panel], kItemColumns,
                true);
      }
    }
    char* out =
        static_cast<char*>(p.out.data) + (h * p.out.stride[0] + first_column * p.out.stride[2]) * size_of(p.dtype);
    if (p.out.stride[1] != 1) {
      for (int64_t d = 0; d < p.head_dim; ++d) {
        write_row(out + d * p.out.stride[1] * size_of(p.dtype), p.out.stride[2], &sums[d * kItemColumns], columns,
                  p.dtype, 1.0F);
      }
      return;
    }
    const Buffer<float> column(padded);
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t d = 0; d < p.head_dim; ++d) column[d] = sums[d * kItemColumns + c];
      write_row(out + c * p.out.stride[2] * size_of(p.dtype), 1, column.data, p.head_dim, p.dtype, 1.0F);
    }
  });
}

}  // namespace moh::kernels::MOH_ISA
