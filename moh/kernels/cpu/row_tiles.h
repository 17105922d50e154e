// Tiles of rows of a linear map, and the inputs that each of them needs: all, or those of the heads that one of its
// rows uses. Made once a call, used for every part of the outputs.
#pragma once

#include "moh/kernels/cpu/row_lists.h"
#include "moh/kernels/cpu/simd.h"
#include "moh/kernels/packed_linear.h"

namespace moh::kernels::MOH_ISA {

struct RowTiles {
  struct Range {
    int64_t begin, end;  // in units of inputs
  };
  struct Tile {
    int64_t first, rows;  // of x
    const Range* ranges;
    int64_t count;
  };

  // rows_of(left): rows of the next tile where `left` rows are left.
  template <class RowsOf>
  RowTiles(int64_t rows, int64_t inputs, int64_t unit, const HeadSides& heads, const RowsOf& rows_of)
      : tiles(rows), ranges_(heads.side == HeadSides::Side::kInputs ? rows * (heads.count + 1) : 1) {
    const int64_t units = (inputs + unit - 1) / unit;
    Range* free = ranges_.data;
    *free = {0, units};
    for (int64_t first = 0; first < rows; first += tiles[count++].rows) {
      Tile& tile = tiles[count];
      tile = {first, rows_of(rows - first), free, 1};
      if (heads.side != HeadSides::Side::kInputs) continue;
      tile.count = 0;
      for (int64_t h = 0; h < heads.count; ++h) {
        const int64_t begin = h * heads.size / unit, end = ((h + 1) * heads.size + unit - 1) / unit;
        if (!heads.used(first, tile.rows, h * heads.size, (h + 1) * heads.size)) continue;
        if (tile.count > 0 && begin <= free[-1].end) {
          free[-1].end = end;
        } else {
          *free++ = {begin, end};
          ++tile.count;
        }
      }
    }
  }

  int64_t count = 0;
  Buffer<Tile> tiles;

 private:
  Buffer<Range> ranges_;
};

// Whether outputs begin .. end - 1 are anything but zero in one of a tile's rows.
static inline bool needs_outputs(const HeadSides& heads, const RowTiles::Tile& tile, int64_t begin, int64_t end) {
  return heads.side != HeadSides::Side::kOutputs || heads.used(tile.first, tile.rows, begin, end);
}
// Zeros for those of a row's `count` outputs from `first` on whose heads the row does not use.
static inline void clear_unused_outputs(const HeadSides& heads, int64_t row, int64_t first, int64_t count,
                                        float* results) {
  if (heads.side != HeadSides::Side::kOutputs) return;
  for (int64_t begin = first, end; begin < first + count; begin = end) {
    end = min_of((begin / heads.size + 1) * heads.size, first + count);
    if (heads.used(row, 1, begin, end)) continue;
    for (int64_t c = begin; c < end; ++c) results[c - first] = 0;
  }
}

}  // namespace moh::kernels::MOH_ISA
