// Shared by forward and backward in bf16: packed keys and values of any sequence, and the exponential.
#pragma once

#include "moh/kernels/cpu/pairs.h"
#include "moh/kernels/cpu/softmax.h"

namespace moh::kernels::MOH_ISA {

// Keys or values from `begin`, a multiple of kPanel, to `end`: [panel of kPanel keys][pair of columns][key].
static inline void transpose_rows(Word* to, const Input4& tensor, const HeadAttentionParams& p,
                                  const Sequence& sequence, int64_t kv_head, int64_t begin, int64_t end) {
  const int64_t words = words_of(p.head_dim), dim = p.head_dim;
  const Buffer<char> own(tensor.stride[3] == 1 ? 0 : kPanel * 2 * dim);
  for (int64_t s = begin; s < end; s += kPanel) {
    transpose_words(to + s * words, kPanel, dim, words, min_of(kPanel, end - s), kPanel, [&](int64_t n) {
      return side_by_side(key_row(tensor, p, sequence, s + n, kv_head), tensor.stride[3], dim, own.data + n * 2 * dim);
    });
  }
}

// The same keys: [panel of columns][pair of keys][column]. Keys of the last tile that do not exist are zeros.
static inline void pair_rows(Word* to, const Input4& tensor, const HeadAttentionParams& p, const Sequence& sequence,
                             int64_t kv_head, int64_t begin, int64_t end, int64_t capacity, int64_t padded) {
  const int64_t dim = p.head_dim;
  const Buffer<char> own(tensor.stride[3] == 1 ? 0 : 4 * dim);
  for (int64_t s = begin; s < round_up(end, 2 * kTile); s += 2) {
    const char* row[2] = {};
    for (int64_t i = 0; i < 2 && s + i < end; ++i) {
      row[i] =
          side_by_side(key_row(tensor, p, sequence, s + i, kv_head), tensor.stride[3], dim, own.data + i * 2 * dim);
    }
    for (int64_t column = 0; column < padded; column += kPanel) {
      const int64_t width = min_of(kPanel, padded - column);
      interleave_rows(to + column * (capacity / 2) + s / 2 * width, row[0] == nullptr ? nullptr : row[0] + 2 * column,
                      row[1] == nullptr ? nullptr : row[1] + 2 * column, min_of(width, dim - column), width);
    }
  }
}

// 2^x to 3e-6 of it, less than bf16 can show of a weight and fp32 of their sum: a polynomial of degree 4.
static inline Vec exp2_short(Vec x) {
#if defined(__AVX512DQ__) && MOH_VECTOR_BYTES == 64
  const Vec f = (Vec)_mm512_reduce_ps((__m512)x, 9);  // x - floor(x), 0 for infinite x
  Vec p = splat(0.01353416805F);
  p = p * f + 0.05201146032F;
  p = p * f + 0.2414427571F;
  p = p * f + 0.6930038344F;
  p = p * f + 1.000002593F;
  return (Vec)_mm512_mask_scalef_ps((__m512)p, 0xffff, (__m512)p, (__m512)x);
#else
  return exp2_of(x);
#endif
}

}  // namespace moh::kernels::MOH_ISA
