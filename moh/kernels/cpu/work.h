// Shared by forward and backward: which rows a head computes, and the packed copies of keys and values.
#pragma once

#include <math.h>

#include "moh/kernels/cpu/panel.h"
#include "moh/kernels/cpu/product.h"
#include "moh/kernels/cpu/row_lists.h"
#include "moh/kernels/head_attention.h"

namespace moh::kernels::MOH_ISA {

constexpr float kLog2E = 1.44269504088896341F, kLn2 = 0.69314718055994531F;
constexpr int64_t kBlockRows = 96;  // query rows that share a pass over the keys: 16 register tiles
// Keys a pass. In fp32 a block of packed keys is 32 KB with D = 64, an L1 cache; in bf16 fewer passes, each with a
// maximum and a factor a row, weigh more (attend_pairs.h: 512 is 8 % faster than 128 on a Zen 4). 32 rows of scores of
// a tile stay small with 256.
#if defined(MOH_TILES)
constexpr int64_t kBlockKeys = 256, kTileRows = 32;  // kTileRows: of a product that is done at once
#elif defined(MOH_PAIRS)
constexpr int64_t kBlockKeys = 512, kTileRows = kRows;
#else
constexpr int64_t kBlockKeys = 128, kTileRows = kRows;
#endif

static inline const char* at(const Input4& tensor, DType dtype, int64_t i, int64_t j, int64_t k) {
  return static_cast<const char*>(tensor.data) +
         (i * tensor.stride[0] + j * tensor.stride[1] + k * tensor.stride[2]) * size_of(dtype);
}
static inline char* at(const Output4& tensor, DType dtype, int64_t i, int64_t j, int64_t k) {
  return static_cast<char*>(tensor.data) +
         (i * tensor.stride[0] + j * tensor.stride[1] + k * tensor.stride[2]) * size_of(dtype);
}

// Query row t of a sequence in a [B, T, H, D] tensor, or of a bias [B, H, T, S].
static inline const char* query_row(const Input4& tensor, DType dtype, const Sequence& sequence, int64_t t, int64_t h) {
  return at(tensor, dtype, sequence.batch, sequence.first_query + t, h);
}
static inline char* query_row(const Output4& tensor, DType dtype, const Sequence& sequence, int64_t t, int64_t h) {
  return at(tensor, dtype, sequence.batch, sequence.first_query + t, h);
}

// The number of a sequence's first row in the selection, the gates and lse.
static inline int64_t first_row_of(const HeadAttentionParams& p, const Sequence& sequence) {
  return sequence.batch * p.rows_per_batch + sequence.first_query;
}

// Hands the rows of all sequences to threads, some at a time: body(sequence, begin, end).
template <class Body>
void for_each_rows(const HeadAttentionParams& p, const Body& body) {
  constexpr int64_t kRowsAnItem = 256;
  int64_t count = 0;
  for (int64_t n = 0; n < p.num_sequences; ++n) count += (p.sequences[n].queries + kRowsAnItem - 1) / kRowsAnItem;
  struct Item {
    int64_t n, begin;
  };
  const Buffer<Item> items(count);
  count = 0;
  for (int64_t n = 0; n < p.num_sequences; ++n) {
    for (int64_t begin = 0; begin < p.sequences[n].queries; begin += kRowsAnItem) items[count++] = {n, begin};
  }
  for_each_item(p.parallel, count, [&](int64_t i) {
    const Sequence& sequence = p.sequences[items[i].n];
    body(sequence, items[i].begin, min_of(items[i].begin + kRowsAnItem, sequence.queries));
  });
}

// Key or value s of a sequence.
static inline const char* key_row(const Input4& tensor, const HeadAttentionParams& p, const Sequence& sequence,
                                  int64_t s, int64_t kv_head) {
  if (sequence.pages == nullptr) return at(tensor, p.dtype, sequence.batch, sequence.first_key + s, kv_head);
  return at(tensor, p.dtype, sequence.pages[s / p.page_size], s % p.page_size, kv_head);
}
// The end of the keys from s on that lie stride[1] apart, at most `end`.
static inline int64_t run_end(const HeadAttentionParams& p, const Sequence& sequence, int64_t s, int64_t end) {
  return sequence.pages == nullptr ? end : min_of(end, (s / p.page_size + 1) * p.page_size);
}

// The rows of every (sequence, head) that use the head and see a key, and the keys that a (sequence, KV head) needs.
struct SequenceRows {
  Buffer<HeadRows> rows;  // [sequence][head]
  int64_t num_heads, group;
  explicit SequenceRows(const HeadAttentionParams& p)
      : rows(p.num_sequences * p.num_heads), num_heads(p.num_heads), group(p.num_heads / p.num_kv_heads) {
    for (int64_t n = 0; n < p.num_sequences; ++n) {
      const Sequence& sequence = p.sequences[n];
      const int64_t first = first_row_of(p, sequence), blind = sequence.keys == 0 ? sequence.queries
                                                               : p.variant.causal
                                                                   ? max_of(0, sequence.queries - sequence.keys)
                                                                   : 0;
      for (int64_t h = 0; h < num_heads; ++h) {
        rows[n * num_heads + h] =
            rows_between(p.selection, h, first + min_of(blind, sequence.queries), first + sequence.queries);
      }
    }
  }
  const HeadRows& of(int64_t n, int64_t h) const { return rows[n * num_heads + h]; }
  // Of all heads of KV head `kv` (counted through all sequences).
  int64_t count(int64_t kv) const {
    int64_t count = 0;
    for (int64_t i = kv * group; i < (kv + 1) * group; ++i) count += rows[i].count;
    return count;
  }
};

// Elements of a packed panel: kPanel keys that lie in several pages are first put side by side.
static inline void pack_keys(float* to, const Input4& tensor, const HeadAttentionParams& p, const Sequence& sequence,
                             int64_t kv_head, int64_t begin, int64_t count) {
  if (run_end(p, sequence, begin, begin + count) == begin + count) {
    pack_panel(to, key_row(tensor, p, sequence, begin, kv_head), p.dtype, tensor.stride[3], tensor.stride[1],
               p.head_dim, count, kPanel);
    return;
  }
  const Buffer<float> rows(kPanel * p.head_dim);
  for (int64_t s = 0; s < count; ++s) {
    read_row(&rows[s * p.head_dim], key_row(tensor, p, sequence, begin + s, kv_head), tensor.stride[3], p.head_dim,
             p.head_dim, p.dtype, 1.0F);
  }
  pack_panel(to, reinterpret_cast<const char*>(rows.data), DType::kFloat32, 1, p.head_dim, p.head_dim, count, kPanel);
}

// Keys transposed into panels of kPanel keys, [panel][d][key in panel]: the B of Q K^T. Those from `begin`, a multiple
// of kPanel, to `end`; what is missing of the last panel is zeros.
static inline void pack_transposed(float* to, const Input4& tensor, const HeadAttentionParams& p,
                                   const Sequence& sequence, int64_t kv_head, int64_t begin, int64_t end) {
  for (int64_t s = begin; s < end; s += kPanel) {
    pack_keys(to + s * p.head_dim, tensor, p, sequence, kv_head, s, min_of(kPanel, end - s));
  }
}

// Rows of keys or values from `begin` to `end`, columns cut into panels of kPanel: [column panel][s][column]. `padded`
// columns in all. Panel c begins at c * kPanel * capacity and its rows are panel_width(c) long.
static inline int64_t panel_width(int64_t panel, int64_t padded) { return min_of(kPanel, padded - panel * kPanel); }
static inline void pack_rows(float* to, const Input4& tensor, const HeadAttentionParams& p, const Sequence& sequence,
                             int64_t kv_head, int64_t begin, int64_t end, int64_t capacity, int64_t padded) {
  for (int64_t s = begin; s < end; ++s) {
    const char* const row = key_row(tensor, p, sequence, s, kv_head);
    for (int64_t panel = 0; panel * kPanel < padded; ++panel) {
      const int64_t width = panel_width(panel, padded), column = panel * kPanel;
      read_row(to + column * capacity + s * width, row + column * tensor.stride[3] * size_of(p.dtype), tensor.stride[3],
               min_of(width, p.head_dim - column), width, p.dtype, 1.0F);
    }
  }
}

// The keys that each row of a block sees, from `first` to `last`; neither decreases.
struct Sight {
  int64_t first[kBlockRows] = {}, last[kBlockRows] = {};
  int64_t count;
  // rows: `count` of the sequence, counted from `first_row`.
  Sight(const HeadAttentionParams& p, const Sequence& sequence, const int32_t* rows, int64_t num_rows,
        int64_t first_row)
      : count(num_rows) {
    for (int64_t i = 0; i < count; ++i) {
      first[i] = first_visible_key(p.variant, sequence, rows[i] - first_row);
      last[i] = visible_keys(p.variant, sequence, rows[i] - first_row);
    }
  }
  // Blocks of keys that a tile of rows needs begin at this key.
  int64_t begin(int64_t tile) const { return first[tile] / kBlockKeys * kBlockKeys; }
  int64_t end() const { return last[count - 1]; }
  // The first row, in whole tiles of kTileRows, that may see `key` or one behind it; `count` if none.
  int64_t first_seeing(int64_t key) const {
    int64_t row = 0;
    while (row < count && last[min_of(row + kTileRows, count) - 1] <= key) row += kTileRows;
    return row;
  }
  // The end of the rows, in whole tiles, that may see a key before `key`.
  int64_t end_seeing(int64_t key) const {
    int64_t row = count;
    while (row > 0 && first[(row - 1) / kTileRows * kTileRows] >= key) row = (row - 1) / kTileRows * kTileRows;
    return row;
  }
};

// scores[i][s - key_begin] = <rows[i], key s> for the keys of one block, as far as each tile of rows sees any.
static inline void block_scores(float* scores, const float* rows, int64_t row_size, const Sight& sight,
                                const float* packed, int64_t dim, int64_t key_begin, int64_t key_end) {
  for (int64_t panel = key_begin; panel < key_end; panel += kPanel) {
    const int64_t first = sight.first_seeing(panel), end = sight.end_seeing(panel + kPanel);
    if (first >= end) continue;
    product(end - first, kPanel, dim, rows + first * row_size, row_size, 1, packed + panel * dim, kPanel,
            scores + first * kBlockKeys + (panel - key_begin), kBlockKeys, false);
  }
}

// A row's scores of the keys from `begin` to `end` of a block of keys that starts at key `block`, in base 2, become
// log2(e) * (cap + bias); those before `begin` -inf. `slope`, if not null, gets the derivative of the cap.
static inline void finish_scores(const HeadAttentionParams& p, const Sequence& sequence, int64_t h, int64_t t,
                                 float* scores, int64_t block, int64_t begin, int64_t end, float* slope) {
  const AttentionVariant& variant = p.variant;
  for (int64_t s = 0; s < begin; ++s) scores[s] = -INFINITY;
  if (variant.soft_cap > 0) {
    // tanh(x / c) = 1 - 2 / (e^(2 x / c) + 1), where x = ln(2) * score.
    const float to_tanh = 2.0F / variant.soft_cap, cap = variant.soft_cap * kLog2E;
    for (int64_t s = begin / kWidth * kWidth; s < end; s += kWidth) {
      const Vec score = load(scores + s), grown = score * to_tanh;
      const Vec bounded = max_of(splat(-60.0F), grown < 60.0F ? grown : grown > 60.0F ? splat(60.0F) : grown);
      const Vec tanh = 1.0F - 2.0F / (exp2_of(bounded) + 1.0F);
      const Vec hidden = score == -INFINITY ? score : tanh * cap;
      store(scores + s, hidden);
      if (slope != nullptr) store(slope + s, 1.0F - tanh * tanh);
    }
  }
  if (variant.bias.data != nullptr && end > begin) {
    float bias[kBlockKeys];
    const char* from = at(variant.bias, variant.bias_dtype, sequence.batch, h, sequence.first_query + t) +
                       (block + begin) * variant.bias.stride[3] * size_of(variant.bias_dtype);
    read_row(bias, from, variant.bias.stride[3], end - begin, end - begin, variant.bias_dtype, kLog2E);
    for (int64_t s = begin; s < end; ++s) scores[s] += bias[s - begin];
  }
}

}  // namespace moh::kernels::MOH_ISA
