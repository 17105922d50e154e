// weight[h] = sum over the rows that selected head h of heads[r,h,:]^T x[r,:], on CPUs.
//
// A thread takes a few heads and a few panels of columns. Block by block of rows it copies x once for all its heads,
// the selected rows of each head once for all its panels, and adds the D x kPanel products, the rows of x by their
// number in the block. Rows are added in their order: the result is the same for any number of threads.
#if defined(MOH_PAIRS)
  #include "moh/kernels/cpu/gradient_pairs.h"
#else
  #include "moh/kernels/cpu/gradient_block.h"
#endif

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int64_t kItemHeads = 8;  // share one copy of x

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
  const int64_t padded = round_up(p.head_dim, kWidth);
  const Buffer<float> turned(columns * padded);
  pack_columns(turned.data, sums, kItemColumns, columns, p.head_dim, padded, padded);
  for (int64_t c = 0; c < columns; ++c) {
    write_row(out + c * p.out.stride[2] * size_of(p.dtype), 1, &turned[c * padded], p.head_dim, p.dtype, 1.0F);
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
    BlockProduct product(padded);
    const Buffer<float> sums(item_heads * sums_size);
    memset(sums.data, 0, static_cast<size_t>(item_heads * sums_size) * sizeof(float));
    int64_t next[kItemHeads] = {};  // of each head's list
    for (int64_t begin = 0; begin < p.selection.num_rows; begin += kBlockRows) {
      const int64_t end = min_of(begin + kBlockRows, p.selection.num_rows);
      product.take_block(p, begin, end, first_column, columns);
      for (int64_t h = first_head; h < end_head; ++h) {
        const int64_t from = next[h - first_head];
        int64_t count = 0;
        while (from + count < lists.count(h) && lists.begin(h)[from + count] < end) ++count;
        next[h - first_head] += count;
        product.add(p, h, {lists.begin(h) + from, count}, begin, first_column, columns,
                    &sums[(h - first_head) * sums_size]);
      }
    }
    for (int64_t h = first_head; h < end_head; ++h) {
      write_gradient(p, h, first_column, columns, &sums[(h - first_head) * sums_size]);
    }
  });
}

}  // namespace moh::kernels::MOH_ISA
