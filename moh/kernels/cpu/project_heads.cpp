// heads[r,h,:] = W_h x[r,:] + bias for the rows that selected head h, on CPUs.
//
// W_h is packed once per call, transposed into panels [C][kPanel] that stay in the L2 cache while the rows of the head
// pass by in tiles of kRows; rows of x are read in place through pointers. A few rows (decode) read W_h in place.
#include "moh/kernels/cpu/projection_work.h"

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int64_t kBlockRows = 96;  // rows of one head that a thread takes at a time
constexpr int64_t kDepth = 512;     // 12 KB of kRows rows of x

void write_head(const ProjectionParams& p, int64_t r, int64_t h, int64_t begin, int64_t size, const float* from) {
  const int64_t place = r * p.out.stride[0] + h * p.out.stride[1] + begin * p.out.stride[2];
  write_row(static_cast<char*>(p.out.data) + place * size_of(p.dtype), p.out.stride[2], from, size, p.dtype, 1.0F);
}

void clear_skipped(const ProjectionParams& p) {
  constexpr int64_t kRowsAnItem = 256;
  for_each_item(p.parallel, (p.rows + kRowsAnItem - 1) / kRowsAnItem, [&](int64_t item) {
    for (int64_t r = item * kRowsAnItem; r < min_of((item + 1) * kRowsAnItem, p.rows); ++r) {
      for (int64_t h = 0; h < p.num_heads; ++h) {
        if (p.gates[r * p.num_heads + h] != 0) continue;
        char* out = static_cast<char*>(p.out.data) + (r * p.out.stride[0] + h * p.out.stride[1]) * size_of(p.dtype);
        if (p.out.stride[2] == 1) {
          memset(out, 0, static_cast<size_t>(p.head_dim * size_of(p.dtype)));
        } else {
          for (int64_t d = 0; d < p.head_dim; ++d)
            memset(out + d * p.out.stride[2] * size_of(p.dtype), 0, size_of(p.dtype));
        }
      }
    }
  });
}

// Each row of W_h is read once for all rows that need it.
void project_few(const ProjectionParams& p, const RowLists& lists, const PlainRows& x) {
  constexpr int64_t kPart = 16;
  const int64_t parts = (p.head_dim + kPart - 1) / kPart;
  for_each_item(p.parallel, p.num_heads * parts, [&](int64_t item) {
    const int64_t h = item / parts, begin = item % parts * kPart, end = min_of(begin + kPart, p.head_dim);
    float result[kFewProjected][kPart];
    for (int64_t d = begin; d < end; ++d) {
      const char* weight = byte_at(p.weight.data, h * p.weight.stride[0] + d * p.weight.stride[1], p.dtype);
      const float bias = p.bias == nullptr ? 0.0F : element(p.bias, h * p.head_dim + d, p.dtype);
      for (int64_t i = 0; i < lists.count(h); ++i) {
        Vec sums[4] = {};
        const float rest = add_products(sums, x.at(lists.begin(h)[i], 0), weight, p.width, p.dtype);
        result[i][d - begin] = bias + rest + total_of(sums);
      }
    }
    for (int64_t i = 0; i < lists.count(h); ++i) write_head(p, lists.begin(h)[i], h, begin, end - begin, result[i]);
  });
}

}  // namespace

void project_heads(const ProjectionParams& p) {
  clear_skipped(p);
  const RowLists lists(p.gates, 1, p.rows, p.num_heads, 0);
  const PlainRows x(p.x.data, p.dtype, p.rows, p.x.stride[0], 1, 0, p.width, p.x.stride[1], nullptr, p.parallel);
  if (p.rows <= kFewProjected && p.weight.stride[2] == 1) return project_few(p, lists, x);

  const int64_t padded = round_up(p.head_dim, kWidth), panels = (padded + kPanel - 1) / kPanel;
  const Buffer<float> packed(p.num_heads * p.width * padded);  // [head][panel][C][column]
  for_each_item(p.parallel, p.num_heads * panels, [&](int64_t item) {
    const int64_t h = item / panels, begin = item % panels * kPanel;
    if (lists.count(h) == 0) return;
    pack_panel(&packed[(h * padded + begin) * p.width],
               byte_at(p.weight.data, h * p.weight.stride[0] + begin * p.weight.stride[1], p.dtype), p.dtype,
               p.weight.stride[2], p.weight.stride[1], p.width, min_of(kPanel, p.head_dim - begin),
               min_of(kPanel, padded - begin));
  });

  const Buffer<int64_t> first_block(p.num_heads + 1);
  first_block[0] = 0;
  for (int64_t h = 0; h < p.num_heads; ++h) {
    first_block[h + 1] = first_block[h] + (lists.count(h) + kBlockRows - 1) / kBlockRows;
  }
  for_each_item(p.parallel, first_block[p.num_heads], [&](int64_t item) {
    int64_t h = 0;
    while (first_block[h + 1] <= item) ++h;
    const int64_t begin = (item - first_block[h]) * kBlockRows;
    const int64_t end = min_of(begin + kBlockRows, lists.count(h));
    const Buffer<float> results(kRows * padded), bias(padded);
    float* to[kRows];
    for (int64_t i = 0; i < kRows; ++i) to[i] = &results[i * padded];
    if (p.bias != nullptr) {
      read_row(bias.data, byte_at(p.bias, h * p.head_dim, p.dtype), 1, p.head_dim, padded, p.dtype, 1.0F);
    }
    for (int64_t tile = begin; tile < end; tile += kRows) {
      const int64_t count = min_of(kRows, end - tile);
      const float* from[kRows] = {};
      for (int64_t i = 0; i < count; ++i) {
        from[i] = x.at(lists.begin(h)[tile + i], 0);
        if (p.bias != nullptr) memcpy(to[i], bias.data, static_cast<size_t>(padded) * sizeof(float));
      }
      for (int64_t depth = 0; depth < p.width; depth += kDepth) {  // a tile of x stays in L1 for all panels
        for (int64_t panel = 0; panel < padded; panel += kPanel) {
          const int64_t width = min_of(kPanel, padded - panel);
          gathered_product(count, width, min_of(kDepth, p.width - depth), from, depth,
                           &packed[(h * padded + panel) * p.width + depth * width], width, to, panel,
                           p.bias != nullptr || depth > 0);
        }
      }
      for (int64_t i = 0; i < count; ++i) write_head(p, lists.begin(h)[tile + i], h, 0, p.head_dim, to[i]);
    }
  });
}

}  // namespace moh::kernels::MOH_ISA
