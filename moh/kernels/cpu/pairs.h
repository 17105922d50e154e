// Matrices in words of two bf16 numbers (tiles.h), the operands of the bf16 kernels' products: the right one packed
// into panels [pair of k][column], the left one in rows.
//
// Where the numbers of a pair lie side by side in memory, as the columns of keys and weights do, packing transposes
// words; where they lie in two rows, as values' do, it interleaves the rows.
#pragma once

#include "moh/kernels/cpu/panel.h"
#include "moh/kernels/cpu/product.h"

namespace moh::kernels::MOH_ISA {

// Words that hold `size` numbers, so many that whole tiles are filled.
static inline int64_t words_of(int64_t size) { return round_up((size + 1) / 2, kTile); }

// to[i] = from[i * stride] for i < size, zeros up to 2 * words.
static inline void read_words(Word* to, const char* from, int64_t stride, int64_t size, int64_t words) {
  if (stride == 1) {
    memcpy(to, from, static_cast<size_t>(2 * size));
  } else {
    for (int64_t i = 0; i < size; ++i) memcpy(reinterpret_cast<char*>(to) + 2 * i, from + 2 * i * stride, 2);
  }
  memset(reinterpret_cast<char*>(to) + 2 * size, 0, static_cast<size_t>(4 * words - 2 * size));
}

// to[k][n] = word k of row n, for `words` words of `size` numbers and `columns` rows; zeros up to `padded` columns and
// where the numbers end. row(n): where it begins; its numbers lie side by side.
template <class Row>
static inline void transpose_words(Word* to, int64_t to_row, int64_t size, int64_t words, int64_t columns,
                                   int64_t padded, const Row& row) {
  constexpr int64_t kBytes = 4 * kWidth;
  for (int64_t n = 0; n < padded; n += kWidth) {
    const char* from[kWidth];
    for (int64_t i = 0; i < kWidth; ++i) from[i] = n + i < columns ? row(n + i) : nullptr;
    for (int64_t k = 0; k < words; k += kWidth) {
      const int64_t bytes = min_of(max_of(2 * size - 4 * k, 0), kBytes);
      Vec rows[kWidth];
      if (bytes == kBytes && n + kWidth <= columns) {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) rows[i] = (Vec)load(reinterpret_cast<const Word*>(from[i] + 4 * k));
      } else {
        for (int i = 0; i < kWidth; ++i) {
          rows[i] = Vec{};
          if (from[i] != nullptr) memcpy(&rows[i], from[i] + 4 * k, static_cast<size_t>(bytes));
        }
      }
      transpose(rows);
      if (k + kWidth <= words && n + kWidth <= padded) {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) store(to + (k + i) * to_row + n, (BitVec)rows[i]);
      } else {
        const auto bytes_of_row = static_cast<size_t>(4 * min_of(kWidth, padded - n));
        for (int64_t i = 0; i < min_of(kWidth, words - k); ++i)
          memcpy(to + (k + i) * to_row + n, &rows[i], bytes_of_row);
      }
    }
  }
}

// to[i] = the pair first[i], second[i] for i < size, zeros up to `padded`, a multiple of the vector width; a null row
// is one of zeros.
static inline void interleave_rows(Word* to, const char* first, const char* second, int64_t size, int64_t padded) {
  const auto widened = [](const char* from) {
    return __builtin_convertvector(*reinterpret_cast<const HalfVec*>(from), BitVec);
  };
  int64_t i = 0;
  if (first != nullptr && second != nullptr) {
    for (; i + kWidth <= size; i += kWidth) store(to + i, widened(first + 2 * i) | widened(second + 2 * i) << 16);
  }
  for (; i < size; ++i) {
    uint16_t low = 0, high = 0;
    if (first != nullptr) memcpy(&low, first + 2 * i, 2);
    if (second != nullptr) memcpy(&high, second + 2 * i, 2);
    to[i] = low | static_cast<uint32_t>(high) << 16;
  }
  for (; i < padded; ++i) to[i] = 0;
}

// `size` numbers side by side: in place, or copied to `own`, which has room for them.
static inline const char* side_by_side(const char* from, int64_t stride, int64_t size, char* own) {
  if (stride == 1) return from;
  for (int64_t i = 0; i < size; ++i) memcpy(own + 2 * i, from + 2 * i * stride, 2);
  return own;
}

// to[k][n] = the pair from[2 k * k_stride + n * n_stride], from[(2 k + 1) * k_stride + ...]; zeros beyond `depth`
// numbers and `columns`, up to `words` and `padded`.
static inline void pack_pairs(Word* to, const char* from, int64_t k_stride, int64_t n_stride, int64_t depth,
                              int64_t words, int64_t columns, int64_t padded) {
  if (k_stride == 1) {
    return transpose_words(to, padded, depth, words, columns, padded,
                           [&](int64_t n) { return from + 2 * n * n_stride; });
  }
  const Buffer<char> rows(n_stride == 1 ? 0 : 4 * columns);
  for (int64_t k = 0; k < words; ++k) {
    const char* row[2] = {};
    for (int64_t i = 0; i < 2; ++i) {
      if (2 * k + i >= depth) continue;
      row[i] = side_by_side(from + 2 * (2 * k + i) * k_stride, n_stride, columns, rows.data + 2 * i * columns);
    }
    interleave_rows(to + k * padded, row[0], row[1], columns, padded);
  }
}

#if defined(MOH_TILES)
// C[a_tiles x b_tiles tiles] (+)= A B, by up to two tiles each way.
template <int a_tiles, int b_tiles>
static inline void tile_block(int64_t depth, const Word* a, int64_t a_row, const Word* b, int64_t b_row, float* c,
                              int64_t c_row, bool accumulate) {
  const int64_t c_bytes = 4 * c_row;
  const auto c_at = [&](int i, int j) { return c + i * kTile * c_row + j * kTile; };
  if (accumulate) {
    load_tile<0>(c_at(0, 0), c_bytes);
    if constexpr (b_tiles > 1) load_tile<1>(c_at(0, 1), c_bytes);
    if constexpr (a_tiles > 1) load_tile<2>(c_at(1, 0), c_bytes);
    if constexpr (a_tiles > 1 && b_tiles > 1) load_tile<3>(c_at(1, 1), c_bytes);
  } else {
    zero_tile<0>();
    if constexpr (b_tiles > 1) zero_tile<1>();
    if constexpr (a_tiles > 1) zero_tile<2>();
    if constexpr (a_tiles > 1 && b_tiles > 1) zero_tile<3>();
  }
  for (int64_t k = 0; k < depth; k += kTile) {
    load_tile<6>(b + k * b_row, 4 * b_row);
    load_tile<4>(a + k, 4 * a_row);
    multiply_tiles<0, 4, 6>();
    if constexpr (b_tiles > 1) {
      load_tile<7>(b + k * b_row + kTile, 4 * b_row);
      multiply_tiles<1, 4, 7>();
    }
    if constexpr (a_tiles > 1) {
      load_tile<5>(a + kTile * a_row + k, 4 * a_row);
      multiply_tiles<2, 5, 6>();
      if constexpr (b_tiles > 1) multiply_tiles<3, 5, 7>();
    }
  }
  store_tile<0>(c_at(0, 0), c_bytes);
  if constexpr (b_tiles > 1) store_tile<1>(c_at(0, 1), c_bytes);
  if constexpr (a_tiles > 1) store_tile<2>(c_at(1, 0), c_bytes);
  if constexpr (a_tiles > 1 && b_tiles > 1) store_tile<3>(c_at(1, 1), c_bytes);
}
#endif

// C (+)= A B of words, rows of A contiguous. With tiles rows of A and C are touched up to a multiple of kTile, and
// depth is a multiple of it; columns are a multiple of kWidth, at most kPanel.
static inline void word_product(int64_t rows, int64_t columns, int64_t depth, const Word* a, int64_t a_row,
                                const Word* b, int64_t b_row, float* c, int64_t c_row, bool accumulate) {
#if defined(MOH_TILES)
  for (int64_t i = 0; i < rows; i += 2 * kTile) {
    const Word* const left = a + i * a_row;
    for (int64_t j = 0; j < columns; j += 2 * kTile) {
      float* const to = c + i * c_row + j;
      const bool two_rows = i + kTile < rows, two_columns = j + kTile < columns;
      if (two_rows && two_columns) {
        tile_block<2, 2>(depth, left, a_row, b + j, b_row, to, c_row, accumulate);
      } else if (two_rows) {
        tile_block<2, 1>(depth, left, a_row, b + j, b_row, to, c_row, accumulate);
      } else if (two_columns) {
        tile_block<1, 2>(depth, left, a_row, b + j, b_row, to, c_row, accumulate);
      } else {
        tile_block<1, 1>(depth, left, a_row, b + j, b_row, to, c_row, accumulate);
      }
    }
  }
#else
  product(rows, columns, depth, a, a_row, 1, b, b_row, c, c_row, accumulate);
#endif
}

}  // namespace moh::kernels::MOH_ISA
