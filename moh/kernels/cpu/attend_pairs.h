// One block of rows of one head against all keys that it sees, in bf16 with fp32 sums: the inside of
// head_attention_forward.cpp where the CPU multiplies pairs of bf16 numbers.
//
// Scores are products of the numbers as they lie; scale, cap, bias and softmax are fp32; weights are rounded to bf16
// for their product with the values, their sum is not. A tile of rows goes through scores, softmax and values of a
// block of keys before the next one begins, so that its scores never leave the L1 cache.
#pragma once

#include "moh/kernels/cpu/softmax_pairs.h"

namespace moh::kernels::MOH_ISA {

using PackedNumber = Word;  // of keys and values
static inline int64_t keys_size(const HeadAttentionParams& p, int64_t capacity) {
  return capacity * words_of(p.head_dim);
}
static inline int64_t values_size(int64_t capacity, int64_t padded) { return capacity / 2 * padded; }

static inline void pack_keys_values(Word* keys, Word* values, const HeadAttentionParams& p, const Sequence& sequence,
                                    int64_t kv_head, int64_t begin, int64_t end, int64_t capacity, int64_t padded) {
  transpose_rows(keys, p.key, p, sequence, kv_head, begin, end);
  pair_rows(values, p.value, p, sequence, kv_head, begin, end, capacity, padded);
}

struct BlockScratch {
  Buffer<Word> query, weights;
  Buffer<float> scores, sums;
  BlockScratch(const HeadAttentionParams& p, int64_t padded)
      : query(kBlockRows * words_of(p.head_dim)),
        weights(kTileRows * (kBlockKeys / 2)),
        scores(kTileRows * kBlockKeys),
        sums(kBlockRows * padded) {
    memset(query.data, 0, static_cast<size_t>(kBlockRows * words_of(p.head_dim)) * sizeof(Word));
    memset(weights.data, 0, static_cast<size_t>(kTileRows * (kBlockKeys / 2)) * sizeof(Word));
  }
};

// Softmax of one block of one row: weights from the scores, times `scale`, of the first `count` keys; zeros up to
// `padded`, a multiple of two vectors. Returns the factor for what was summed before.
static inline float softmax_weights(const float* scores, float scale, int64_t padded, Word* weights, State& state) {
  const Vec factor_of_scores = splat(scale);
  Vec best = splat(state.max), second = best;
  for (int64_t s = 0; s < padded; s += 2 * kWidth) {
    best = max_of(load(scores + s) * factor_of_scores, best);
    second = max_of(load(scores + s + kWidth) * factor_of_scores, second);
  }
  const float new_max = max_in(max_of(best, second));
  const float base = new_max == -INFINITY ? 0.0F : new_max;
  Vec sum = Vec{}, other = Vec{};
  for (int64_t s = 0; s < padded; s += 2 * kWidth) {
    const Vec low = exp2_short(load(scores + s) * factor_of_scores - base);
    const Vec high = exp2_short(load(scores + s + kWidth) * factor_of_scores - base);
    store(weights + s / 2, to_pairs(low, high));
    sum += low;
    other += high;
  }
  const float factor = state.max == new_max ? 1.0F : exp2_of(splat(state.max - base))[0];
  state.sum = state.sum * factor + sum_in(sum + other);
  state.max = new_max;
  return factor;
}

static inline void attend_block(const HeadAttentionParams& p, const Sequence& sequence, int64_t h,
                                const HeadRows& block, const Word* keys, const Word* values, int64_t capacity,
                                int64_t padded, const BlockScratch& scratch) {
  State state[kBlockRows];
  const int64_t dim = p.head_dim, words = words_of(dim), count = block.count, first_row = first_row_of(p, sequence);
  const Sight sight(p, sequence, block.rows, count, first_row);
  for (int64_t i = 0; i < count; ++i) {
    read_words(&scratch.query[i * words], query_row(p.query, p.dtype, sequence, block.rows[i] - first_row, h),
               p.query.stride[3], dim, words);
    state[i] = {-INFINITY, 0.0F};
  }
  // What finish_scores has to see is scaled before; a negative scale would turn -inf, where no key is, round.
  const bool plain = p.variant.plain() && p.variant.bias.data == nullptr && p.scale > 0;
  const float scale = p.scale * kLog2E;
  const Tiles tiles;
  for (int64_t key_begin = sight.begin(0); key_begin < sight.end(); key_begin += kBlockKeys) {
    const int64_t key_end = min_of(key_begin + kBlockKeys, sight.end());
    const int64_t first = sight.first_seeing(key_begin), end = sight.end_seeing(key_end);
    for (int64_t tile = first; tile < end; tile += kTileRows) {
      const int64_t tile_end = min_of(tile + kTileRows, end);
      const int64_t tile_keys = min_of(sight.last[tile_end - 1], key_end) - key_begin;
      const int64_t tile_padded = round_up(tile_keys, 2 * kWidth);
      for (int64_t s = 0; s < tile_keys; s += kPanel) {
        word_product(tile_end - tile, min_of(kPanel, tile_padded - s), words, &scratch.query[tile * words], words,
                     keys + (key_begin + s) * words, kPanel, &scratch.scores[s], kBlockKeys, false);
      }
      for (int64_t i = tile; i < tile_end; ++i) {
        float* scores = &scratch.scores[(i - tile) * kBlockKeys];
        const int64_t seen = max_of(min_of(sight.last[i], key_end) - key_begin, 0);
        if (!plain) {
          const int64_t hidden = min_of(max_of(sight.first[i] - key_begin, 0), seen);
          for (int64_t s = 0; s < seen; s += kWidth) store(scores + s, load(scores + s) * scale);
          finish_scores(p, sequence, h, block.rows[i] - first_row, scores, key_begin, hidden, seen, nullptr);
        }
        for (int64_t s = seen; s < tile_padded; ++s) scores[s] = -INFINITY;
        const float factor = softmax_weights(scores, plain ? scale : 1.0F, tile_padded,
                                             &scratch.weights[(i - tile) * (kBlockKeys / 2)], state[i]);
        if (key_begin > sight.begin(tile) && factor != 1) rescale(&scratch.sums[i * padded], padded, factor);
      }
      const int64_t depth = words_of(tile_keys);
      for (int64_t column = 0; column < padded; column += kPanel) {
        const int64_t width = min_of(kPanel, padded - column);
        word_product(tile_end - tile, width, depth, scratch.weights.data, kBlockKeys / 2,
                     values + column * (capacity / 2) + key_begin / 2 * width, width,
                     &scratch.sums[tile * padded + column], padded, key_begin > sight.begin(tile));
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    write_output(p, sequence, h, block.rows[i] - first_row, &scratch.sums[i * padded], state[i]);
  }
}

}  // namespace moh::kernels::MOH_ISA
