// y = x W^T + b by packed weights, on CPUs. An item is a panel of outputs and a block of rows; the panel stays in the
// L2 cache while the rows pass by in tiles. Weights of two bytes are widened in registers.
#include "moh/kernels/packed_linear.h"

#include "moh/kernels/cpu/projection_work.h"
#include "moh/kernels/cpu/row_tiles.h"

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int64_t kTilesAnItem = 16;

// C[rows][columns from c_begin on] = sum_k A[rows][k] B[k][..] over a tile's inputs; rows of B are kPackedColumns
// apart.
template <int rows, int vectors, class T>
void packed_tile(const RowTiles::Tile& tile, const float* const* a, const T* b, float* const* c, int64_t c_begin) {
  Vec sum[rows][vectors];
  const float* row[rows];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    row[i] = a[i];
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) sum[i][j] = Vec{};
  }
  for (int64_t n = 0; n < tile.count; ++n) {
    for (int64_t k = tile.ranges[n].begin; k < tile.ranges[n].end; ++k) {
      Vec right[vectors];
#pragma GCC unroll 8
      for (int j = 0; j < vectors; ++j) right[j] = widen(b + k * kPackedColumns + c_begin + j * kWidth);
#pragma GCC unroll 8
      for (int i = 0; i < rows; ++i) {
        const Vec left = splat(row[i][k]);
#pragma GCC unroll 8
        for (int j = 0; j < vectors; ++j) sum[i][j] += left * right[j];
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) store(c[i] + c_begin + j * kWidth, sum[i][j]);
  }
}

template <int rows, class T>
void packed_rows(const RowTiles::Tile& tile, const float* const* a, const T* b, float* const* c) {
  // A row alone takes as many columns at a time as hide the latency of its additions.
  constexpr int kWanted = rows == 1 ? 8 : kVectors;
  constexpr int kTaken = kWanted * kWidth <= kPackedColumns ? kWanted : static_cast<int>(kPackedColumns / kWidth);
  for (int64_t column = 0; column < kPackedColumns; column += kTaken * kWidth) {
    packed_tile<rows, kTaken>(tile, a, b, c, column);
  }
}

template <class T>
void packed_tile_of(const RowTiles::Tile& tile, const float* const* a, const T* b, float* const* c) {
  switch (tile.rows) {
    case 6:
      return packed_rows<6>(tile, a, b, c);
    case 5:
      return packed_rows<5>(tile, a, b, c);
    case 4:
      return packed_rows<4>(tile, a, b, c);
    case 3:
      return packed_rows<3>(tile, a, b, c);
    case 2:
      return packed_rows<2>(tile, a, b, c);
    default:
      return packed_rows<1>(tile, a, b, c);
  }
}

template <class T>
void packed_block(const PackedLinearParams& p, const PlainRows& x, const RowTiles& tiles, int64_t panel, int64_t begin,
                  int64_t end) {
  const int64_t first = panel * kPackedColumns, columns = min_of(kPackedColumns, p.outputs - first);
  const T* const weight = static_cast<const T*>(p.weight) + first * p.inputs;
  float results[kRows][kPackedColumns];
  float* to[kRows];
  for (int64_t i = 0; i < kRows; ++i) to[i] = results[i];
  for (int64_t t = begin; t < end; ++t) {
    const RowTiles::Tile& tile = tiles.tiles[t];
    const float* from[kRows] = {};
    for (int64_t i = 0; i < tile.rows; ++i) from[i] = x.at(tile.first + i, 0);
    if (needs_outputs(p.heads, tile, first, first + columns)) packed_tile_of(tile, from, weight, to);
    for (int64_t i = 0; i < tile.rows; ++i) {
      if (p.bias != nullptr) {
        for (int64_t c = 0; c < columns; ++c) results[i][c] += p.bias[first + c];
      }
      clear_unused_outputs(p.heads, tile.first + i, first, columns, results[i]);
      const int64_t place = (tile.first + i) * p.y.stride[0] + first * p.y.stride[1];
      write_row(static_cast<char*>(p.y.data) + place * size_of(p.dtype), p.y.stride[1], results[i], columns, p.dtype,
                1.0F);
    }
  }
}

}  // namespace

void packed_linear(const PackedLinearParams& p) {
  const PlainRows x(p.x.data, p.dtype, p.rows, p.x.stride[0], 1, 0, p.inputs, p.x.stride[1], nullptr, p.parallel);
  const RowTiles tiles(p.rows, p.inputs, 1, p.heads, [](int64_t left) { return min_of(kRows, left); });
  const int64_t panels = (p.outputs + kPackedColumns - 1) / kPackedColumns;
  const int64_t groups = (tiles.count + kTilesAnItem - 1) / kTilesAnItem;
  for_each_item(p.parallel, panels * groups, [&](int64_t item) {
    const int64_t panel = item / groups, begin = item % groups * kTilesAnItem;
    const int64_t end = min_of(begin + kTilesAnItem, tiles.count);
    if (p.weight_dtype == DType::kFloat32) {
      packed_block<float>(p, x, tiles, panel, begin, end);
    } else if (p.weight_dtype == DType::kBFloat16) {
      packed_block<uint16_t>(p, x, tiles, panel, begin, end);
    } else {
      packed_block<_Float16>(p, x, tiles, panel, begin, end);
    }
  });
}

}  // namespace moh::kernels::MOH_ISA
