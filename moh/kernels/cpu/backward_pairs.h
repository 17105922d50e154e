// Gradients of one block of rows of one head, in bf16 with fp32 sums: the inside of head_attention_backward.cpp where
// the CPU multiplies pairs of bf16 numbers.
//
// Scores and dP are products of the numbers as they lie; P and dS are fp32, rounded to bf16 for the products that they
// go into: in pairs of rows for the gradients of keys and values, in pairs of keys for the queries'.
#pragma once

#include "moh/kernels/cpu/pairs.h"
#include "moh/kernels/cpu/softmax_pairs.h"

namespace moh::kernels::MOH_ISA {

constexpr int64_t kGradientKeys = 128;  // a pass; kBlockKeys is a multiple of it

struct Packed {               // one KV head
  Buffer<Word> keys, values;  // [panel][pair of columns][key], for scores and dP
  Buffer<Word> key_pairs;     // [panel of columns][pair of keys][column], for the gradients of queries
  Packed(int64_t capacity, int64_t dim, int64_t padded)
      : keys(capacity * words_of(dim)), values(capacity * words_of(dim)), key_pairs(capacity / 2 * padded) {}

  void fill(const HeadAttentionParams& p, const Sequence& sequence, int64_t kv_head, int64_t capacity,
            int64_t padded) const {
    transpose_rows(keys.data, p.key, p, sequence, kv_head, 0, sequence.keys);
    transpose_rows(values.data, p.value, p, sequence, kv_head, 0, sequence.keys);
    pair_rows(key_pairs.data, p.key, p, sequence, kv_head, 0, sequence.keys, capacity, padded);
  }
};

struct Scratch {
  Buffer<Word> query, grad;                                            // [row][pair of columns]
  Buffer<Word> query_pairs, grad_pairs;                                // [pair of rows][column]
  Buffer<float> scores, grad_scores;                                   // [row][kGradientKeys]
  Buffer<Word> weights_turned, grad_scores_turned, grad_scores_words;  // [pair of rows][key] twice, [row][pair of keys]
  Buffer<float> grad_query, row, grad_row;
  Scratch(int64_t dim, int64_t padded)
      : query(kBlockRows * words_of(dim)),
        grad(kBlockRows * words_of(dim)),
        query_pairs(kBlockRows / 2 * padded),
        grad_pairs(kBlockRows / 2 * padded),
        scores(kBlockRows * kGradientKeys),
        grad_scores(kBlockRows * kGradientKeys),
        weights_turned(kBlockRows / 2 * kGradientKeys),
        grad_scores_turned(kBlockRows / 2 * kGradientKeys),
        grad_scores_words(kBlockRows * kGradientKeys / 2),
        grad_query(kBlockRows * padded),
        row(padded),
        grad_row(padded) {
    // Whole tiles are read, also where rows are missing.
    const auto row_bytes = static_cast<size_t>(kBlockRows * words_of(dim)) * sizeof(Word);
    memset(query.data, 0, row_bytes);
    memset(grad.data, 0, row_bytes);
    memset(grad_scores_words.data, 0, static_cast<size_t>(kBlockRows * kGradientKeys / 2) * sizeof(Word));
  }
};

// The gradients of one KV head's keys and values, [keys][padded]; those of keys lack the factor.
struct KeyGradients {
  float *key, *value;
};
static inline float key_factor(const HeadAttentionParams& p) { return p.scale; }

// gate * P in place of scores (times `scale`), dS in place of dP, for one row of a block. Returns the sum of P * dP.
static inline float softmax_gradient(float* scores, float* grad, float scale, int64_t seen, int64_t padded, float lse,
                                     float gate, float delta) {
  for (int64_t s = seen; s < padded; ++s) {
    scores[s] = -INFINITY;
    grad[s] = 0;
  }
  Vec sum = Vec{};
  for (int64_t s = 0; s < padded; s += kWidth) {
    const Vec p = exp2_short(load(scores + s) * scale - lse), dp = load(grad + s), gated = p * gate;
    sum += p * dp;
    store(scores + s, gated);
    store(grad + s, gated * (dp - delta));
  }
  return sum_in(sum);
}

// C [keys x padded] += A^T B: A [pair of rows][key], B [pair of rows][padded].
static inline void add_turned_product(int64_t keys, int64_t pairs, const Word* a, const Word* b, float* c,
                                      int64_t padded) {
  for (int64_t panel = 0; panel < padded; panel += kPanel) {
    product(keys, min_of(kPanel, padded - panel), pairs, a, 1, kGradientKeys, b + panel, padded, c + panel, padded,
            true);
  }
}

static inline void backward_block(const HeadAttentionParams& p, const Sequence& sequence, int64_t h,
                                  const HeadRows& block, const Packed& packed, int64_t capacity, int64_t padded,
                                  const Scratch& scratch, const KeyGradients& gradients) {
  const int64_t dim = p.head_dim, words = words_of(dim), count = block.count, first_row = first_row_of(p, sequence);
  const int32_t* const rows = block.rows;
  const Sight sight(p, sequence, rows, count, first_row);
  const Tiles tiles;
  float lse[kBlockRows], gate[kBlockRows], delta[kBlockRows], grad_gate[kBlockRows] = {};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t t = rows[i] - first_row, place = rows[i] * p.num_heads + h;
    gate[i] = p.selection.gates[place];
    const char* const grad = query_row(p.grad_out, p.dtype, sequence, t, h);
    read_row(scratch.grad_row.data, grad, p.grad_out.stride[3], dim, padded, p.dtype, 1.0F);
    read_row(scratch.row.data, query_row(p.out_saved, p.dtype, sequence, t, h), p.out_saved.stride[3], dim, padded,
             p.dtype, 1.0F);
    Vec dot = Vec{};
    for (int64_t d = 0; d < padded; d += kWidth) dot += load(&scratch.grad_row[d]) * load(&scratch.row[d]);
    delta[i] = sum_in(dot) / gate[i];
    // A row whose keys the bias hides all: P = 2^(-inf) = 0.
    lse[i] = p.lse[place] == -INFINITY ? INFINITY : p.lse[place] * kLog2E;
    read_words(&scratch.grad[i * words], grad, p.grad_out.stride[3], dim, words);
    read_words(&scratch.query[i * words], query_row(p.query, p.dtype, sequence, t, h), p.query.stride[3], dim, words);
  }
  const auto pair_up = [&](Word* to, const Word* from) {
    for (int64_t i = 0; i < count; i += 2) {
      interleave_rows(to + i / 2 * padded, reinterpret_cast<const char*>(from + i * words),
                      i + 1 < count ? reinterpret_cast<const char*>(from + (i + 1) * words) : nullptr, dim, padded);
    }
  };
  pair_up(scratch.query_pairs.data, scratch.query.data);
  pair_up(scratch.grad_pairs.data, scratch.grad.data);
  memset(scratch.grad_query.data, 0, static_cast<size_t>(kBlockRows * padded) * sizeof(float));

  const bool plain = p.variant.plain() && p.variant.bias.data == nullptr && p.scale > 0;
  const float scale = p.scale * kLog2E;
  for (int64_t key_begin = sight.begin(0); key_begin < sight.end(); key_begin += kGradientKeys) {
    const int64_t key_end = min_of(key_begin + kGradientKeys, sight.end()), block_keys = key_end - key_begin;
    const int64_t first = sight.first_seeing(key_begin), end = sight.end_seeing(key_end);
    if (first >= end) continue;
    for (int64_t s = 0; s < block_keys; s += kPanel) {
      const int64_t from = max_of(first, sight.first_seeing(key_begin + s));
      if (from >= end) continue;
      word_product(end - from, kPanel, words, &scratch.query[from * words], words,
                   &packed.keys[(key_begin + s) * words], kPanel, &scratch.scores[from * kGradientKeys + s],
                   kGradientKeys, false);
      word_product(end - from, kPanel, words, &scratch.grad[from * words], words,
                   &packed.values[(key_begin + s) * words], kPanel, &scratch.grad_scores[from * kGradientKeys + s],
                   kGradientKeys, false);
    }
    const int64_t padded_keys = round_up(block_keys, 2 * kWidth);
    for (int64_t i = first; i < end; ++i) {
      float *scores = &scratch.scores[i * kGradientKeys], *grad = &scratch.grad_scores[i * kGradientKeys];
      const int64_t seen = max_of(min_of(sight.last[i], key_end) - key_begin, 0), t = rows[i] - first_row;
      const int64_t hidden = min_of(max_of(sight.first[i] - key_begin, 0), seen);
      float slope[kGradientKeys];
      if (!plain) {
        for (int64_t s = 0; s < seen; s += kWidth) store(scores + s, load(scores + s) * scale);
        finish_scores(p, sequence, h, t, scores, key_begin, hidden, seen, slope);
        for (int64_t s = 0; s < hidden; ++s) grad[s] = 0;
      }
      grad_gate[i] +=
          softmax_gradient(scores, grad, plain ? scale : 1.0F, seen, padded_keys, lse[i], gate[i], delta[i]);
      if (p.grad_bias.data != nullptr) {
        float* to = p.grad_bias.data + sequence.batch * p.grad_bias.stride[0] + h * p.grad_bias.stride[1] +
                    (sequence.first_query + t) * p.grad_bias.stride[2] + key_begin;
        memcpy(to, grad, static_cast<size_t>(seen) * sizeof(float));
      }
      if (p.variant.soft_cap > 0) {
        for (int64_t s = hidden; s < seen; ++s) grad[s] *= slope[s];
      }
      for (int64_t s = 0; s < padded_keys; s += 2 * kWidth) {
        store(&scratch.grad_scores_words[(i * kGradientKeys + s) / 2],
              to_pairs(load(grad + s), load(grad + s + kWidth)));
      }
    }
    const int64_t pairs = (end - first + 1) / 2;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const int64_t i = first + 2 * pair, place = i * kGradientKeys;
      const bool alone = i + 1 == end;
      for (int64_t s = 0; s < padded_keys; s += kWidth) {
        const auto both = [&](const Buffer<float>& from) {
          return join_pairs(load(&from[place + s]), alone ? Vec{} : load(&from[place + kGradientKeys + s]));
        };
        store(&scratch.weights_turned[pair * kGradientKeys + s], both(scratch.scores));
        store(&scratch.grad_scores_turned[pair * kGradientKeys + s], both(scratch.grad_scores));
      }
    }
    add_turned_product(block_keys, pairs, scratch.weights_turned.data, &scratch.grad_pairs[first / 2 * padded],
                       gradients.value + key_begin * padded, padded);
    add_turned_product(block_keys, pairs, scratch.grad_scores_turned.data, &scratch.query_pairs[first / 2 * padded],
                       gradients.key + key_begin * padded, padded);
    for (int64_t tile = first; tile < end; tile += kTileRows) {
      const int64_t tile_end = min_of(tile + kTileRows, end);
      const int64_t tile_keys = min_of(sight.last[tile_end - 1], key_end) - key_begin;
      for (int64_t column = 0; column < padded; column += kPanel) {
        const int64_t width = min_of(kPanel, padded - column);
        word_product(tile_end - tile, width, words_of(tile_keys), &scratch.grad_scores_words[tile * kGradientKeys / 2],
                     kGradientKeys / 2, &packed.key_pairs[column * (capacity / 2) + key_begin / 2 * width], width,
                     &scratch.grad_query[tile * padded + column], padded, true);
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    write_row(query_row(p.grad_query, p.dtype, sequence, rows[i] - first_row, h), p.grad_query.stride[3],
              &scratch.grad_query[i * padded], dim, p.dtype, p.scale);
    if (p.grad_gates != nullptr) p.grad_gates[rows[i] * p.num_heads + h] = grad_gate[i];
  }
}

}  // namespace moh::kernels::MOH_ISA
