// Shared by forward and backward: which rows a head computes, and the packed copies of keys and values.
#pragma once

#include "moh/kernels/cpu/product.h"

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

// The tokens that use a head and see a key, in order, for every (batch, head): row[first[b * H + h] ...].
struct RowLists {
  Buffer<int32_t> rows;
  Buffer<int64_t> first;
  explicit RowLists(const HeadAttentionParams& p)
      : rows(p.batch * p.num_heads * p.queries), first(p.batch * p.num_heads + 1) {
    const int64_t heads = p.num_heads;
    for (int64_t i = 0; i <= p.batch * heads; ++i) first[i] = 0;
    // Counts, then places: the gates are read in their own order both times.
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t t = 0; t < p.queries; ++t) {
        if (visible_keys(p, t) == 0) continue;
        for (int64_t h = 0; h < heads; ++h) first[b * heads + h + 1] += gate_of(p, b, t, h) != 0;
      }
    }
    for (int64_t i = 0; i < p.batch * heads; ++i) first[i + 1] += first[i];
    Buffer<int64_t> next(p.batch * heads);
    for (int64_t i = 0; i < p.batch * heads; ++i) next[i] = first[i];
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t t = 0; t < p.queries; ++t) {
        if (visible_keys(p, t) == 0) continue;
        for (int64_t h = 0; h < heads; ++h) {
          if (gate_of(p, b, t, h) != 0) rows[next[b * heads + h]++] = static_cast<int32_t>(t);
        }
      }
    }
  }
  int64_t count(int64_t bh) const { return first[bh + 1] - first[bh]; }
  const int32_t* begin(int64_t bh) const { return &rows[first[bh]]; }
};

// Keys transposed into panels of kPanel keys, [panel][d][key in panel]: the B of Q K^T. Missing keys are zeros.
static inline void pack_transposed(float* to, const Input4& tensor, const HeadAttentionParams& p, int64_t b,
                                   int64_t kv_head, int64_t keys, float* row) {
  const int64_t dim = p.head_dim;
  for (int64_t s = 0; s < round_up(keys, kPanel); ++s) {
    float* panel = to + s / kPanel * dim * kPanel + s % kPanel;
    if (s < keys) {
      read_row(row, at(tensor, p.dtype, b, s, kv_head), tensor.stride[3], dim, dim, p.dtype, 1.0F);
      for (int64_t d = 0; d < dim; ++d) panel[d * kPanel] = row[d];
    } else {
      for (int64_t d = 0; d < dim; ++d) panel[d * kPanel] = 0;
    }
  }
}

// Rows of keys or values, columns cut into panels of kPanel: [column panel][s][column]. `padded` columns in all.
// Panel c begins at c * kPanel * capacity and its rows are panel_width(c) long.
static inline int64_t panel_width(int64_t panel, int64_t padded) { return min_of(kPanel, padded - panel * kPanel); }
static inline void pack_rows(float* to, const Input4& tensor, const HeadAttentionParams& p, int64_t b, int64_t kv_head,
                             int64_t keys, int64_t capacity, int64_t padded, float* row) {
  for (int64_t s = 0; s < keys; ++s) {
    if (padded <= kPanel) {
      read_row(to + s * padded, at(tensor, p.dtype, b, s, kv_head), tensor.stride[3], p.head_dim, padded, p.dtype,
               1.0F);
      continue;
    }
    read_row(row, at(tensor, p.dtype, b, s, kv_head), tensor.stride[3], p.head_dim, padded, p.dtype, 1.0F);
    for (int64_t panel = 0; panel * kPanel < padded; ++panel) {
      const int64_t width = panel_width(panel, padded);
      memcpy(to + panel * kPanel * capacity + s * width, row + panel * kPanel,
             static_cast<size_t>(width) * sizeof(float));
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

// Hands the items 0 .. count - 1 to threads one after another; `body(item)`.
template <class Body>
void for_each_item(const Parallel& parallel, int64_t count, Body&& body) {
  int64_t next = 0;
  const int workers = static_cast<int>(min_of(parallel.num_threads, count));
  parallel(workers, [&](int) {
    for (;;) {
      const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (item >= count) return;
      body(item);
    }
  });
}

}  // namespace moh::kernels::MOH_ISA
