// Fused head-sparse attention, backward, on CPUs. With A = softmax(cap(scale * q K^T) + bias) V of a row and out = gate
// * A:
//
//   P = exp(scores - lse)         recomputed; lse saved by the forward pass
//   dP = grad_out V^T             grad_gate = sum_s P dP
//   delta = <grad_out, out> / gate, equal to grad_gate but known before P is: no second pass over the keys
//   dS = gate * P * (dP - delta)  grad_bias = dS; behind a soft cap c, dS * (1 - (scores / c)^2) goes on
//   grad_query = scale * dS K     grad_key += scale * dS^T q
//   grad_value += (gate * P)^T grad_out
//
// grad_gate is not taken from delta, whose `out` was rounded: with a gate of 1e-6 an fp16 `out` has hardly any digits
// left. Only rows that selected the head are gathered; no T x S memory. Blocks of 96 rows x 128 keys. Deterministic: a
// task owns the gradients of one KV head's keys for its rows; where there are fewer KV heads than threads want, the
// rows are cut into parts whose gradients of keys are added in the order of the parts.
#include <math.h>

#include "moh/kernels/cpu/work.h"

namespace moh::kernels::MOH_ISA {
namespace {

struct Packed {  // one KV head in fp32
  Buffer<float> keys_transposed, keys, values_transposed;
  Packed(int64_t capacity, int64_t dim, int64_t padded)
      : keys_transposed(capacity * dim), keys(capacity * padded), values_transposed(capacity * dim) {}
};

struct Scratch {
  Buffer<float> query, grad, scores, grad_scores, grad_query, row;
  explicit Scratch(int64_t padded)
      : query(kBlockRows * padded),
        grad(kBlockRows * padded),
        scores(kBlockRows * kBlockKeys),
        grad_scores(kBlockRows * kBlockKeys),
        grad_query(kBlockRows * padded),
        row(padded) {}
};

// C [keys x padded] += A^T [keys x rows] B [rows x padded]; A lies as [row][key in block].
void add_transposed_product(int64_t keys, int64_t rows, const float* a, const float* b, float* c, int64_t padded) {
  for (int64_t panel = 0; panel < padded; panel += kPanel) {
    product(keys, min_of(kPanel, padded - panel), rows, a, 1, kBlockKeys, b + panel, padded, c + panel, padded, true);
  }
}

// gate * P in place of scores, dS in place of dP, for one row of a block. Returns the sum of P * dP.
float softmax_gradient(float* scores, float* grad, int64_t seen, int64_t padded, float lse, float gate, float delta) {
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

void backward_block(const HeadAttentionParams& p, const Sequence& sequence, int64_t h, const HeadRows& block,
                    const Packed& packed, int64_t capacity, int64_t padded, const Scratch& scratch,
                    const KeyGradients& gradients) {
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

// Gradients of skipped rows are zero.
void clear_skipped(const HeadAttentionParams& p) {
  for_each_rows(p, [&](const Sequence& sequence, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const bool sees_none = visible_keys(p.variant, sequence, t) == 0;
      const int64_t row = (first_row_of(p, sequence) + t) * p.num_heads;
      for (int64_t h = 0; h < p.num_heads; ++h) {
        if (p.grad_bias.data != nullptr) {
          memset(p.grad_bias.data + sequence.batch * p.grad_bias.stride[0] + h * p.grad_bias.stride[1] +
                     (sequence.first_query + t) * p.grad_bias.stride[2],
                 0, static_cast<size_t>(sequence.keys) * sizeof(float));
        }
        if (p.selection.gates[row + h] != 0 && !sees_none) continue;
        clear_row(query_row(p.grad_query, p.dtype, sequence, t, h), p.grad_query.stride[3], p.head_dim, p.dtype);
        if (p.grad_gates != nullptr) p.grad_gates[row + h] = 0;
      }
    }
  });
}

// How the rows of one sequence are shared: not by what else is in the call, so that its gradients do not depend on it.
struct Parts {
  int64_t count, gradient_size;
  Parts(const HeadAttentionParams& p, const Sequence& sequence, int64_t padded)
      : gradient_size(sequence.keys * padded) {
    const int64_t group = p.num_heads / p.num_kv_heads;
    const int64_t row_blocks = group * ((sequence.queries + kBlockRows - 1) / kBlockRows);
    const int64_t wanted = (2 * p.parallel.num_threads + p.num_kv_heads - 1) / p.num_kv_heads;
    count = p.parallel.num_threads == 1 ? 1 : max_of(1, min_of(wanted, row_blocks / 2));
  }
};

void write_gradients(const HeadAttentionParams& p, const Sequence& sequence, int64_t kv_head,
                     const KeyGradients& gradients, int64_t padded) {
  for (int64_t s = 0; s < sequence.keys; ++s) {
    const int64_t key = sequence.first_key + s;
    // The rows were scaled by scale * log2(e) for the scores.
    write_row(at(p.grad_key, p.dtype, sequence.batch, key, kv_head), p.grad_key.stride[3], gradients.key + s * padded,
              p.head_dim, p.dtype, kLn2);
    write_row(at(p.grad_value, p.dtype, sequence.batch, key, kv_head), p.grad_value.stride[3],
              gradients.value + s * padded, p.head_dim, p.dtype, 1.0F);
  }
}

// Sequences `begin` to `end`, whose parts' gradients fit into memory together.
void backward_sequences(const HeadAttentionParams& p, const SequenceRows& rows, int64_t begin, int64_t end) {
  const int64_t padded = round_up(p.head_dim, kWidth), group = rows.group;
  struct Item {
    int64_t n, kv_head, part, place;  // place: of its gradients
  };
  int64_t most_keys = 0, num_items = 0, size = 0;
  for (int64_t n = begin; n < end; ++n) {
    most_keys = max_of(most_keys, p.sequences[n].keys);
    num_items += p.num_kv_heads * Parts(p, p.sequences[n], padded).count;
  }
  const int64_t capacity = round_up(most_keys, kPanel);
  const Buffer<Item> items(num_items);
  num_items = 0;
  for (int64_t n = begin; n < end; ++n) {
    const Parts parts(p, p.sequences[n], padded);
    for (int64_t kv_head = 0; p.sequences[n].keys > 0 && kv_head < p.num_kv_heads; ++kv_head) {
      for (int64_t part = 0; part < parts.count; ++part) {
        items[num_items++] = {n, kv_head, part, size};
        if (parts.count > 1) size += 2 * parts.gradient_size;
      }
    }
  }
  const Buffer<float> shared(size);  // of every (KV head, part) where there are several, added up at the end
  int64_t next = 0;
  p.parallel(static_cast<int>(min_of(p.parallel.num_threads, num_items)), [&](int) {
    const Packed packed(capacity, p.head_dim, padded);
    const Scratch scratch(padded);
    const Buffer<float> own(2 * most_keys * padded);
    for (;;) {
      const int64_t number = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (number >= num_items) return;
      const Item& item = items[number];
      const Sequence& sequence = p.sequences[item.n];
      const Parts parts(p, sequence, padded);
      float* const place = parts.count > 1 ? &shared[item.place] : own.data;
      const KeyGradients gradients = {place, place + parts.gradient_size};
      memset(place, 0, static_cast<size_t>(2 * parts.gradient_size) * sizeof(float));
      bool is_packed = false;
      int64_t block_number = 0;  // blocks go to the parts in turn, so that causal rows are spread evenly
      for (int64_t h = item.kv_head * group; h < (item.kv_head + 1) * group; ++h) {
        const HeadRows& list = rows.of(item.n, h);
        for (int64_t row = 0; row < list.count; row += kBlockRows) {
          if (block_number++ % parts.count != item.part) continue;
          if (!is_packed) {
            pack_transposed(packed.keys_transposed.data, p.key, p, sequence, item.kv_head, 0, sequence.keys);
            pack_transposed(packed.values_transposed.data, p.value, p, sequence, item.kv_head, 0, sequence.keys);
            pack_rows(packed.keys.data, p.key, p, sequence, item.kv_head, 0, sequence.keys, capacity, padded);
            is_packed = true;
          }
          backward_block(p, sequence, h, {list.rows + row, min_of(kBlockRows, list.count - row)}, packed, capacity,
                         padded, scratch, gradients);
        }
      }
      if (parts.count == 1) write_gradients(p, sequence, item.kv_head, gradients, padded);
    }
  });
  if (size == 0) return;
  for_each_item(p.parallel, num_items, [&](int64_t number) {
    const Item& item = items[number];
    const Parts parts(p, p.sequences[item.n], padded);
    if (item.part > 0 || parts.count == 1) return;
    float* const sum = &shared[item.place];
    for (int64_t part = 1; part < parts.count; ++part) {
      const float* const more = sum + part * 2 * parts.gradient_size;
      for (int64_t i = 0; i < 2 * parts.gradient_size; i += kWidth) store(sum + i, load(sum + i) + load(more + i));
    }
    write_gradients(p, p.sequences[item.n], item.kv_head, {sum, sum + parts.gradient_size}, padded);
  });
}

}  // namespace

void head_attention_backward(const HeadAttentionParams& p) {
  constexpr int64_t kMostShared = int64_t{1} << 27;  // numbers: 512 MB
  clear_skipped(p);
  const SequenceRows rows(p);
  const int64_t padded = round_up(p.head_dim, kWidth);
  for (int64_t begin = 0, end; begin < p.num_sequences; begin = end) {
    int64_t size = 0;
    for (end = begin; end < p.num_sequences; ++end) {
      const Parts parts(p, p.sequences[end], padded);
      const int64_t more = parts.count > 1 ? p.num_kv_heads * parts.count * 2 * parts.gradient_size : 0;
      if (end > begin && size + more > kMostShared) break;
      size += more;
    }
    backward_sequences(p, rows, begin, end);
  }
}

}  // namespace moh::kernels::MOH_ISA
