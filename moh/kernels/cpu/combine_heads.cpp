// x[r,:] = sum over the heads that row r selected of heads[r,h,:] W_h + bias, on CPUs.
//
// W is packed once per call into panels [head][D][kPanel]. A thread takes a block of rows and two panels of columns;
// its sums stay in a small buffer while head after head adds to the rows that selected it, both read and written
// through pointers. A few rows (decode) read W in place.
#include "moh/kernels/cpu/projection_work.h"

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int64_t kItemColumns = 128;
constexpr int64_t kBlockBytes = 512 * 1024;  // active heads of a block of rows stay in an L2 cache of 1 MB

void write_columns(const ProjectionParams& p, int64_t r, int64_t begin, int64_t size, const float* from) {
  const int64_t place = r * p.out.stride[0] + begin * p.out.stride[1];
  write_row(static_cast<char*>(p.out.data) + place * size_of(p.dtype), p.out.stride[1], from, size, p.dtype, 1.0F);
}

// W_O as it lies, [C, H * D]: for each column of x the selected heads' parts of one row.
void combine_few(const ProjectionParams& p, const PlainRows& heads) {
  constexpr int64_t kPart = 64;
  for_each_item(p.parallel, (p.width + kPart - 1) / kPart, [&](int64_t item) {
    const int64_t begin = item * kPart, end = min_of(begin + kPart, p.width);
    float result[kFewProjected][kPart];
    for (int64_t c = begin; c < end; ++c) {
      const float bias = p.bias == nullptr ? 0.0F : element(p.bias, c, p.dtype);
      const char* row = byte_at(p.weight.data, c * p.weight.stride[2], p.dtype);
      for (int64_t r = 0; r < p.selection.num_rows; ++r) {
        const float* gates = p.selection.gates + r * p.selection.num_heads;
        Vec sums[4] = {};
        float rest = bias;
        for (int64_t h = 0; h < p.selection.num_heads; ++h) {
          if (gates[h] == 0) continue;
          rest +=
              add_products(sums, heads.at(r, h), row + h * p.weight.stride[0] * size_of(p.dtype), p.head_dim, p.dtype);
        }
        result[r][c - begin] = rest + total_of(sums);
      }
    }
    for (int64_t r = 0; r < p.selection.num_rows; ++r) write_columns(p, r, begin, end - begin, result[r]);
  });
}

}  // namespace

void combine_heads(const ProjectionParams& p) {
  if (p.selection.num_rows <= kFewProjected && p.weight.stride[1] == 1) {
    const PlainRows heads(p.heads.data, p.dtype, p.selection.num_rows, p.heads.stride[0], p.selection.num_heads,
                          p.heads.stride[1], p.head_dim, p.heads.stride[2], p.selection.gates, p.parallel);
    return combine_few(p, heads);
  }
  const LeftRows heads(p.heads.data, p.dtype, p.selection.num_rows, p.heads.stride[0], p.selection.num_heads,
                       p.heads.stride[1], p.head_dim, p.heads.stride[2], p.selection.gates, p.parallel);

  const Selection& lists = p.selection;
  const int64_t panels = (p.width + kPanel - 1) / kPanel;
  const auto panel_width = [&](int64_t panel) { return min_of(kPanel, round_up(p.width, kWidth) - panel * kPanel); };
  const int64_t steps = steps_of(p.head_dim), panel_size = p.selection.num_heads * steps * kPanel;
  const Buffer<Step> packed(panels * panel_size);  // [panel][head][step of D][column]
  for_each_item(p.parallel, panels, [&](int64_t panel) {
    for (int64_t h = 0; h < p.selection.num_heads; ++h) {
      if (lists.count(h) == 0) continue;
      pack_right(&packed[panel * panel_size + h * steps * kPanel],
                 byte_at(p.weight.data, h * p.weight.stride[0] + panel * kPanel * p.weight.stride[2], p.dtype), p.dtype,
                 p.weight.stride[1], p.weight.stride[2], p.head_dim, min_of(kPanel, p.width - panel * kPanel),
                 panel_width(panel));
    }
  });

  const int64_t average =
      max_of(1, lists.first[p.selection.num_heads] * steps_of(p.head_dim) * 4 / max_of(1, p.selection.num_rows));
  const int64_t block_rows = max_of(48, min_of(384, kBlockBytes / average));
  const int64_t groups = (p.width + kItemColumns - 1) / kItemColumns;
  const int64_t blocks = (p.selection.num_rows + block_rows - 1) / block_rows;
  for_each_item(p.parallel, blocks * groups, [&](int64_t item) {
    const int64_t first_row = item / groups * block_rows,
                  end_row = min_of(first_row + block_rows, p.selection.num_rows);
    const int64_t first_column = item % groups * kItemColumns;
    const int64_t columns = min_of(kItemColumns, p.width - first_column);
    const Buffer<float> sums(block_rows * kItemColumns);
    for (int64_t r = first_row; r < end_row; ++r) {
      float* row = &sums[(r - first_row) * kItemColumns];
      if (p.bias == nullptr) {
        memset(row, 0, kItemColumns * sizeof(float));
      } else {
        read_row(row, byte_at(p.bias, first_column, p.dtype), 1, columns, kItemColumns, p.dtype, 1.0F);
      }
    }
    for (int64_t h = 0; h < p.selection.num_heads; ++h) {
      const int32_t* rows = lists.begin(h);
      const int64_t begin = first_not_below(rows, lists.count(h), first_row);
      const int64_t end = first_not_below(rows, lists.count(h), end_row);
      for (int64_t tile = begin; tile < end; tile += kRows) {
        const int64_t count = min_of(kRows, end - tile);
        const Step* from[kRows] = {};
        float* to[kRows] = {};
        for (int64_t i = 0; i < count; ++i) {
          from[i] = heads.at(rows[tile + i], h);
          to[i] = &sums[(rows[tile + i] - first_row) * kItemColumns];
        }
        for (int64_t column = 0; column < columns; column += kPanel) {
          const int64_t panel = (first_column + column) / kPanel, width = panel_width(panel);
          gathered_product(count, width, steps, from, 0, &packed[panel * panel_size + h * steps * kPanel], width, to,
                           column, true);
        }
      }
    }
    for (int64_t r = first_row; r < end_row; ++r) {
      write_columns(p, r, first_column, columns, &sums[(r - first_row) * kItemColumns]);
    }
  });
}

}  // namespace moh::kernels::MOH_ISA
