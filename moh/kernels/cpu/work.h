// Shared by forward and backward: which rows a head computes, and the packed copies of keys and values.
#pragma once

#include "moh/kernels/cpu/panel.h"
#include "moh/kernels/cpu/product.h"
#include "moh/kernels/cpu/row_lists.h"
#include "moh/kernels/head_attention.h"

namespace moh::kernels::MOH_ISA {

constexpr float kLog2E = 1.44269504088896341F, kLn2 = 0.69314718055994531F;
constexpr int64_t kBlockRows = 96;   // query rows that share a pass over the keys: 16 register tiles
constexpr int64_t kBlockKeys = 128;  // keys a pass: with D = 64 a block of packed keys is 32 KB, an L1 cache

static inline const char* at(const Input4& tensor, DType dtype, int64_t i, int64_t j, int64_t k) {
  return static_cast<const char*>(tensor.data) +
         (i * tensor.stride[0] + j * tensor.stride[1] + k * tensor.stride[2]) * size_of(dtype);
}
static inline char* at(const Output4& tensor, DType dtype, int64_t i, int64_t j, int64_t k) {
  return static_cast<char*>(tensor.data) +
         (i * tensor.stride[0] + j * tensor.stride[1] + k * tensor.stride[2]) * size_of(dtype);
}

// Keys that query token t sees: s < visible.
static inline int64_t visible_keys(const HeadAttentionParams& p, int64_t t) {
  if (!p.causal) return p.keys;
  const int64_t visible = t + p.keys - p.queries + 1;
  return visible < 0 ? 0 : visible > p.keys ? p.keys : visible;
}

static inline float gate_of(const HeadAttentionParams& p, int64_t b, int64_t t, int64_t h) {
  return p.gates[(b * p.queries + t) * p.num_heads + h];
}

// The tokens that use a head and see a key.
static inline RowLists row_lists(const HeadAttentionParams& p) {
  const int64_t first_seeing = p.keys == 0 ? p.queries : p.causal ? max_of(0, p.queries - p.keys) : 0;
  return RowLists(p.gates, p.batch, p.queries, p.num_heads, first_seeing);
}

// Keys transposed into panels of kPanel keys, [panel][d][key in panel]: the B of Q K^T. Those from `begin`, a multiple
// of kPanel, to `end`; what is missing of the last panel is zeros.
static inline void pack_transposed(float* to, const Input4& tensor, const HeadAttentionParams& p, int64_t b,
                                   int64_t kv_head, int64_t begin, int64_t end) {
  for (int64_t s = begin; s < end; s += kPanel) {
    pack_panel(to + s * p.head_dim, at(tensor, p.dtype, b, s, kv_head), p.dtype, tensor.stride[3], tensor.stride[1],
               p.head_dim, min_of(kPanel, end - s), kPanel);
  }
}

// Rows of keys or values from `begin` to `end`, columns cut into panels of kPanel: [column panel][s][column]. `padded`
// columns in all. Panel c begins at c * kPanel * capacity and its rows are panel_width(c) long.
static inline int64_t panel_width(int64_t panel, int64_t padded) { return min_of(kPanel, padded - panel * kPanel); }
static inline void pack_rows(float* to, const Input4& tensor, const HeadAttentionParams& p, int64_t b, int64_t kv_head,
                             int64_t begin, int64_t end, int64_t capacity, int64_t padded) {
  for (int64_t s = begin; s < end; ++s) {
    for (int64_t panel = 0; panel * kPanel < padded; ++panel) {
      const int64_t width = panel_width(panel, padded), column = panel * kPanel;
      read_row(to + column * capacity + s * width,
               at(tensor, p.dtype, b, s, kv_head) + column * tensor.stride[3] * size_of(p.dtype), tensor.stride[3],
               min_of(width, p.head_dim - column), width, p.dtype, 1.0F);
    }
  }
}

// The first row, in whole tiles of kRows, that may see `key`: rows before it see no key from there on; `count` if none.
// `visible`: keys that each row sees, non-decreasing.
static inline int64_t first_row_seeing(const int64_t* visible, int64_t count, int64_t key) {
  int64_t first = 0;
  while (first < count && visible[min_of(first + kRows, count) - 1] <= key) first += kRows;
  return first;
}

// scores[i][s - key_begin] = <rows[i], key s> for the keys of one block, as far as each group of kRows rows sees any.
// `visible`: keys that each row sees, non-decreasing.
static inline void block_scores(float* scores, const float* rows, int64_t row_size, int64_t count,
                                const int64_t* visible, const float* packed, int64_t dim, int64_t key_begin,
                                int64_t key_end) {
  for (int64_t panel = key_begin; panel < key_end; panel += kPanel) {
    const int64_t first = first_row_seeing(visible, count, panel);
    if (first >= count) return;
    product(count - first, kPanel, dim, rows + first * row_size, row_size, 1, packed + panel * dim, kPanel,
            scores + first * kBlockKeys + (panel - key_begin), kBlockKeys, false);
  }
}

// Adds log2(e) * bias to the scores of one row for the `count` <= kBlockKeys keys from `key_begin` on.
static inline void add_bias(const HeadAttentionParams& p, int64_t b, int64_t h, int64_t t, float* scores,
                            int64_t key_begin, int64_t count) {
  float bias[kBlockKeys];
  const char* from = at(p.bias, p.dtype, b, h, t) + key_begin * p.bias.stride[3] * size_of(p.dtype);
  read_row(bias, from, p.bias.stride[3], count, count, p.dtype, kLog2E);
  for (int64_t s = 0; s < count; ++s) scores[s] += bias[s];
}

}  // namespace moh::kernels::MOH_ISA
