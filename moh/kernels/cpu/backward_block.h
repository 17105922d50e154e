// Gradients of one block of rows of one head, in fp32: the inside of head_attention_backward.cpp.
#pragma once

#include <math.h>

#include "moh/kernels/cpu/work.h"

namespace moh::kernels::MOH_ISA {

struct Packed {  // one KV head in fp32
  Buffer<float> keys_transposed, keys, values_transposed;
  Packed(int64_t capacity, int64_t dim, int64_t padded)
      : keys_transposed(capacity * dim), keys(capacity * padded), values_transposed(capacity * dim) {}

  void fill(const HeadAttentionParams& p, const Sequence& sequence, int64_t kv_head, int64_t capacity,
            int64_t padded) const {
    pack_transposed(keys_transposed.data, p.key, p, sequence, kv_head, 0, sequence.keys);
    pack_transposed(values_transposed.data, p.value, p, sequence, kv_head, 0, sequence.keys);
    pack_rows(keys.data, p.key, p, sequence, kv_head, 0, sequence.keys, capacity, padded);
  }
};

struct Scratch {
  Buffer<float> query, grad, scores, grad_scores, grad_query, row;
  Scratch(int64_t, int64_t padded)
      : query(kBlockRows * padded),
        grad(kBlockRows * padded),
        scores(kBlockRows * kBlockKeys),
        grad_scores(kBlockRows * kBlockKeys),
        grad_query(kBlockRows * padded),
        row(padded) {}
};

// C [keys x padded] += A^T [keys x rows] B [rows x padded]; A lies as [row][key in block].
static inline void add_transposed_product(int64_t keys, int64_t rows, const float* a, const float* b, float* c,
                                          int64_t padded) {
  for (int64_t panel = 0; panel < padded; panel += kPanel) {
    product(keys, min_of(kPanel, padded - panel), rows, a, 1, kBlockKeys, b + panel, padded, c + panel, padded, true);
  }
}

// gate * P in place of scores, dS in place of dP, for one row of a block. Returns the sum of P * dP.
static inline float softmax_gradient(float* scores, float* grad, int64_t seen, int64_t padded, float lse, float gate,
                                     float delta) {
  for (int64_t s = seen; s < padded; ++s) {
    scores[s] = -INFINITY;
    grad[s] = 0;
  }
  Vec sum = Vec{};
  for (int64_t s = 0; s < padded; s += kWidth) {
    const Vec p = exp2_of(load(scores + s) - lse), dp = load(grad + s), gated = p * gate;
    sum += p * dp;
    store(scores + s, gated);
    store(grad + s, gated * (dp - delta));
  }
  return sum_in(sum);
}

// The gradients of one KV head's keys and values, [keys][padded].
struct KeyGradients {
  float *key, *value;
};
// The rows were scaled by scale * log2(e) for the scores.
static inline float key_factor(const HeadAttentionParams&) { return kLn2; }

static inline void backward_block(const HeadAttentionParams& p, const Sequence& sequence, int64_t h,
                                  const HeadRows& block, const Packed& packed, int64_t capacity, int64_t padded,
                                  const Scratch& scratch, const KeyGradients& gradients) {
  const int64_t dim = p.head_dim, count = block.count, first_row = first_row_of(p, sequence);
  const int32_t* const rows = block.rows;
  const Sight sight(p, sequence, rows, count, first_row);
  float lse[kBlockRows], gate[kBlockRows], delta[kBlockRows], grad_gate[kBlockRows] = {};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t t = rows[i] - first_row, place = rows[i] * p.num_heads + h;
    gate[i] = p.selection.gates[place];
    float* grad = &scratch.grad[i * padded];
    read_row(grad, query_row(p.grad_out, p.dtype, sequence, t, h), p.grad_out.stride[3], dim, padded, p.dtype, 1.0F);
    read_row(scratch.row.data, query_row(p.out_saved, p.dtype, sequence, t, h), p.out_saved.stride[3], dim, padded,
             p.dtype, 1.0F);
    Vec dot = Vec{};
    for (int64_t d = 0; d < padded; d += kWidth) {
      dot += load(grad + d) * load(&scratch.row[d]);
    }
    delta[i] = sum_in(dot) / gate[i];
    // A row whose keys the bias hides all: P = 2^(-inf) = 0.
    lse[i] = p.lse[place] == -INFINITY ? INFINITY : p.lse[place] * kLog2E;
    read_row(&scratch.query[i * padded], query_row(p.query, p.dtype, sequence, t, h), p.query.stride[3], dim, padded,
             p.dtype, p.scale * kLog2E);
  }
  for (int64_t key_begin = sight.begin(0); key_begin < sight.end(); key_begin += kBlockKeys) {
    const int64_t key_end = min_of(key_begin + kBlockKeys, sight.end());
    block_scores(scratch.scores.data, scratch.query.data, padded, sight, packed.keys_transposed.data, dim, key_begin,
                 key_end);
    block_scores(scratch.grad_scores.data, scratch.grad.data, padded, sight, packed.values_transposed.data, dim,
                 key_begin, key_end);
    const int64_t first = sight.first_seeing(key_begin), end = sight.end_seeing(key_end);
    const int64_t block_keys = key_end - key_begin;
    for (int64_t i = first; i < end; ++i) {
      float *scores = &scratch.scores[i * kBlockKeys], *grad = &scratch.grad_scores[i * kBlockKeys];
      const int64_t seen = max_of(min_of(sight.last[i], key_end) - key_begin, 0);
      const int64_t hidden = min_of(max_of(sight.first[i] - key_begin, 0), seen), t = rows[i] - first_row;
      float slope[kBlockKeys];
      finish_scores(p, sequence, h, t, scores, key_begin, hidden, seen, slope);
      for (int64_t s = 0; s < hidden; ++s) grad[s] = 0;
      grad_gate[i] += softmax_gradient(scores, grad, seen, round_up(block_keys, kWidth), lse[i], gate[i], delta[i]);
      if (p.grad_bias.data != nullptr) {
        float* to = p.grad_bias.data + sequence.batch * p.grad_bias.stride[0] + h * p.grad_bias.stride[1] +
                    (sequence.first_query + t) * p.grad_bias.stride[2] + key_begin;
        memcpy(to, grad, static_cast<size_t>(seen) * sizeof(float));
      }
      if (p.variant.soft_cap > 0) {
        for (int64_t s = hidden; s < seen; ++s) grad[s] *= slope[s];
      }
    }
    const int64_t used = end - first;
    add_transposed_product(block_keys, used, &scratch.scores[first * kBlockKeys], &scratch.grad[first * padded],
                           gradients.value + key_begin * padded, padded);
    add_transposed_product(block_keys, used, &scratch.grad_scores[first * kBlockKeys], &scratch.query[first * padded],
                           gradients.key + key_begin * padded, padded);
    for (int64_t panel = 0; panel * kPanel < padded; ++panel) {
      const int64_t width = panel_width(panel, padded);
      const float* keys = packed.keys.data + panel * kPanel * capacity + key_begin * width;
      for (int64_t tile = first; tile < end; tile += kRows) {
        const int64_t tile_rows = min_of(kRows, end - tile);
        product(tile_rows, width, min_of(sight.last[tile + tile_rows - 1], key_end) - key_begin,
                &scratch.grad_scores[tile * kBlockKeys], kBlockKeys, 1, keys, width,
                &scratch.grad_query[tile * padded + panel * kPanel], padded, key_begin > sight.begin(tile));
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
