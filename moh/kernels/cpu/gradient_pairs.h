// The products of a block of rows for weight_gradient.cpp, in bf16 with fp32 sums: a pair is two rows that use the
// head, interleaved.
#pragma once

#include "moh/kernels/cpu/projection_work.h"

namespace moh::kernels::MOH_ISA {

constexpr int64_t kBlockRows = 256;           // of x
constexpr int64_t kItemColumns = 4 * kPanel;  // share one copy of the heads' rows

struct BlockProduct {
  Buffer<Word> x_rows, x_pairs, head_pairs;
  Buffer<char> own;  // two rows of a head whose numbers do not lie side by side
  int64_t padded;
  explicit BlockProduct(int64_t padded_dim)
      : x_rows(kBlockRows * kItemColumns / 2),
        x_pairs(kBlockRows / 2 * kPanel),
        head_pairs(kBlockRows / 2 * padded_dim),
        own(4 * padded_dim),
        padded(padded_dim) {}

  // Rows `begin` to `end` of x, [panel][row][kPanel]: rows of a matrix often lie a multiple of 4 KB apart, and would
  // share a few lines of the L1 cache.
  void take_block(const ProjectionParams& p, int64_t begin, int64_t end, int64_t first_column, int64_t columns) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t panel = 0; panel < columns; panel += kPanel) {
        read_words(&x_rows[(panel * kBlockRows + (r - begin) * kPanel) / 2],
                   byte_at(p.x.data, r * p.x.stride[0] + (first_column + panel) * p.x.stride[1], DType::kBFloat16),
                   p.x.stride[1], min_of(kPanel, columns - panel), kPanel / 2);
      }
    }
  }

  // sums[D][kItemColumns] += the products of the block's rows that use head h.
  void add(const ProjectionParams& p, int64_t h, const HeadRows& rows, int64_t begin, int64_t, int64_t columns,
           float* sums) {
    const int64_t steps = steps_of(rows.count);
    const auto interleave = [&](Word* to, int64_t size, int64_t width, const auto& row_of) {
      for (int64_t k = 0; k < steps; ++k) {
        const bool alone = 2 * k + 1 == rows.count;
        interleave_rows(to + k * width, row_of(rows.rows[2 * k], 0), alone ? nullptr : row_of(rows.rows[2 * k + 1], 1),
                        size, width);
      }
    };
    interleave(head_pairs.data, p.head_dim, padded, [&](int64_t r, int64_t place) {
      return side_by_side(byte_at(p.heads.data, r * p.heads.stride[0] + h * p.heads.stride[1], DType::kBFloat16),
                          p.heads.stride[2], p.head_dim, own.data + 2 * place * p.head_dim);
    });
    for (int64_t panel = 0; panel < columns; panel += kPanel) {
      const int64_t width = round_up(min_of(kPanel, columns - panel), kWidth);
      interleave(x_pairs.data, width, width, [&](int64_t r, int64_t) {
        return reinterpret_cast<const char*>(&x_rows[(panel * kBlockRows + (r - begin) * kPanel) / 2]);
      });
      product(p.head_dim, width, steps, head_pairs.data, 1, padded, x_pairs.data, width, sums + panel, kItemColumns,
              true);
    }
  }
};

}  // namespace moh::kernels::MOH_ISA
