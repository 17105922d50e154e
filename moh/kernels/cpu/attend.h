// One block of rows of one head against all keys that it sees, in fp32: the inside of head_attention_forward.cpp.
// Three passes over a block of keys, scores, softmax and values, so that each operand stays in L1.
#pragma once

#include "moh/kernels/cpu/softmax.h"

namespace moh::kernels::MOH_ISA {

using PackedNumber = float;  // of keys and values
static inline int64_t keys_size(const HeadAttentionParams& p, int64_t capacity) { return capacity * p.head_dim; }
static inline int64_t values_size(int64_t capacity, int64_t padded) { return capacity * padded; }

static inline void pack_keys_values(float* keys, float* values, const HeadAttentionParams& p, const Sequence& sequence,
                                    int64_t kv_head, int64_t begin, int64_t end, int64_t capacity, int64_t padded) {
  pack_transposed(keys, p.key, p, sequence, kv_head, begin, end);
  pack_rows(values, p.value, p, sequence, kv_head, begin, end, capacity, padded);
}

struct BlockScratch {
  Buffer<float> query, scores, sums;
  explicit BlockScratch(const HeadAttentionParams& p, int64_t padded)
      : query(kBlockRows * p.head_dim), scores(kBlockRows * kBlockKeys), sums(kBlockRows * padded) {}
};

static inline void attend_block(const HeadAttentionParams& p, const Sequence& sequence, int64_t h,
                                const HeadRows& block, const float* keys, const float* values, int64_t capacity,
                                int64_t padded, const BlockScratch& scratch) {
  State state[kBlockRows];
  const int64_t dim = p.head_dim, count = block.count, first_row = first_row_of(p, sequence);
  const Sight sight(p, sequence, block.rows, count, first_row);
  for (int64_t i = 0; i < count; ++i) {
    read_row(&scratch.query[i * dim], query_row(p.query, p.dtype, sequence, block.rows[i] - first_row, h),
             p.query.stride[3], dim, dim, p.dtype, p.scale * kLog2E);
    state[i] = {-INFINITY, 0.0F};
  }
  for (int64_t key_begin = sight.begin(0); key_begin < sight.end(); key_begin += kBlockKeys) {
    const int64_t key_end = min_of(key_begin + kBlockKeys, sight.end());
    block_scores(scratch.scores.data, scratch.query.data, dim, sight, keys, dim, key_begin, key_end);
    const int64_t first = sight.first_seeing(key_begin), end = sight.end_seeing(key_end);
    int64_t depth[kBlockRows / kRows];  // keys that each tile of rows multiplies with values
    for (int64_t tile = first; tile < end; tile += kRows) {
      const int64_t tile_end = min_of(tile + kRows, end);
      const int64_t tile_keys = min_of(sight.last[tile_end - 1], key_end) - key_begin;
      depth[tile / kRows] = tile_keys;
      for (int64_t i = tile; i < tile_end; ++i) {
        float* scores = &scratch.scores[i * kBlockKeys];
        const int64_t seen = max_of(min_of(sight.last[i], key_end) - key_begin, 0);
        const int64_t hidden = min_of(max_of(sight.first[i] - key_begin, 0), seen);
        finish_scores(p, sequence, h, block.rows[i] - first_row, scores, key_begin, hidden, seen, nullptr);
        const float factor = softmax_block(scores, seen, round_up(tile_keys, kWidth), state[i]);
        if (key_begin > sight.begin(tile)) rescale(&scratch.sums[i * padded], padded, factor);
      }
    }
    for (int64_t panel = 0; panel * kPanel < padded; ++panel) {
      const int64_t width = panel_width(panel, padded);
      const float* packed = values + panel * kPanel * capacity + key_begin * width;
      for (int64_t tile = first; tile < end; tile += kRows) {
        product(min_of(kRows, end - tile), width, depth[tile / kRows], &scratch.scores[tile * kBlockKeys], kBlockKeys,
                1, packed, width, &scratch.sums[tile * padded + panel * kPanel], padded, key_begin > sight.begin(tile));
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    write_output(p, sequence, h, block.rows[i] - first_row, &scratch.sums[i * padded], state[i]);
  }
}

}  // namespace moh::kernels::MOH_ISA
