// Fused head-sparse attention, backward, on CPUs. With A = softmax(scale * q K^T + bias) V of a row and out = gate * A:
//
//   P = exp(scores - lse)         recomputed; lse saved by the forward pass
//   dP = grad_out V^T             grad_gate = sum_s P dP
//   delta = <grad_out, out> / gate, equal to grad_gate but known before P is: no second pass over the keys
//   dS = gate * P * (dP - delta)  grad_bias = dS
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

void backward_block(const HeadAttentionParams& p, int64_t b, int64_t h, const int32_t* rows, int64_t count,
                    const Packed& packed, int64_t capacity, int64_t padded, const Scratch& scratch, float* grad_key,
                    float* grad_value) {
  const int64_t dim = p.head_dim;
  int64_t visible[kBlockRows] = {};
  float lse[kBlockRows], gate[kBlockRows], delta[kBlockRows], grad_gate[kBlockRows] = {};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t t = rows[i];
    gate[i] = gate_of(p, b, t, h);
    float* grad = &scratch.grad[i * padded];
    visible[i] = visible_keys(p, t);
    read_row(grad, at(p.grad_out, p.dtype, b, t, h), p.grad_out.stride[3], dim, padded, p.dtype, 1.0F);
    read_row(scratch.row.data, at(p.out_saved, p.dtype, b, t, h), p.out_saved.stride[3], dim, padded, p.dtype, 1.0F);
    Vec dot = Vec{};
    for (int64_t d = 0; d < padded; d += kWidth) {
      dot += load(grad + d) * load(&scratch.row[d]);
    }
    delta[i] = sum_in(dot) / gate[i];
    const int64_t place = (b * p.num_heads + h) * p.queries + t;
    // A row whose keys the bias hides all: P = 2^(-inf) = 0.
    lse[i] = p.lse[place] == -INFINITY ? INFINITY : p.lse[place] * kLog2E;
    read_row(&scratch.query[i * padded], at(p.query, p.dtype, b, t, h), p.query.stride[3], dim, padded, p.dtype,
             p.scale * kLog2E);
  }
  const int64_t last = visible[count - 1];
  for (int64_t key_begin = 0; key_begin < last; key_begin += kBlockKeys) {
    const int64_t key_end = min_of(key_begin + kBlockKeys, last);
    block_scores(scratch.scores.data, scratch.query.data, padded, count, visible, packed.keys_transposed.data, dim,
                 key_begin, key_end);
    block_scores(scratch.grad_scores.data, scratch.grad.data, padded, count, visible, packed.values_transposed.data,
                 dim, key_begin, key_end);
    const int64_t first = first_row_seeing(visible, count, key_begin);
    const int64_t block_keys = key_end - key_begin;
    for (int64_t i = first; i < count; ++i) {
      float *scores = &scratch.scores[i * kBlockKeys], *grad = &scratch.grad_scores[i * kBlockKeys];
      const int64_t seen = max_of(min_of(visible[i], key_end) - key_begin, 0);
      if (p.bias.data != nullptr) add_bias(p, b, h, rows[i], scores, key_begin, seen);
      grad_gate[i] += softmax_gradient(scores, grad, seen, round_up(block_keys, kWidth), lse[i], gate[i], delta[i]);
      if (p.grad_bias != nullptr) {
        float* to = p.grad_bias + ((b * p.num_heads + h) * p.queries + rows[i]) * p.keys + key_begin;
        memcpy(to, grad, static_cast<size_t>(seen) * sizeof(float));
      }
    }
    const int64_t used = count - first;
    add_transposed_product(block_keys, used, &scratch.scores[first * kBlockKeys], &scratch.grad[first * padded],
                           grad_value + key_begin * padded, padded);
    add_transposed_product(block_keys, used, &scratch.grad_scores[first * kBlockKeys], &scratch.query[first * padded],
                           grad_key + key_begin * padded, padded);
    for (int64_t panel = 0; panel * kPanel < padded; ++panel) {
      const int64_t width = panel_width(panel, padded);
      const float* keys = packed.keys.data + panel * kPanel * capacity + key_begin * width;
      for (int64_t tile = first; tile < count; tile += kRows) {
        const int64_t tile_rows = min_of(kRows, count - tile);
        product(tile_rows, width, min_of(visible[tile + tile_rows - 1], key_end) - key_begin,
                &scratch.grad_scores[tile * kBlockKeys], kBlockKeys, 1, keys, width,
                &scratch.grad_query[tile * padded + panel * kPanel], padded, key_begin > 0);
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    write_row(at(p.grad_query, p.dtype, b, rows[i], h), p.grad_query.stride[3], &scratch.grad_query[i * padded], dim,
              p.dtype, p.scale);
    if (p.grad_gates != nullptr) p.grad_gates[(b * p.queries + rows[i]) * p.num_heads + h] = grad_gate[i];
  }
}

void zero_row(const Output4& tensor, const HeadAttentionParams& p, int64_t b, int64_t t, int64_t h) {
  char* row = at(tensor, p.dtype, b, t, h);
  clear_row(row, tensor.stride[3], p.head_dim, p.dtype);
}

// Gradients of skipped rows are zero.
void clear_skipped(const HeadAttentionParams& p) {
  for_each_item(p.parallel, p.batch * p.num_heads, [&](int64_t bh) {
    const int64_t b = bh / p.num_heads, h = bh % p.num_heads;
    if (p.grad_bias != nullptr) {
      memset(p.grad_bias + bh * p.queries * p.keys, 0, static_cast<size_t>(p.queries * p.keys) * sizeof(float));
    }
    for (int64_t t = 0; t < p.queries; ++t) {
      if (gate_of(p, b, t, h) != 0 && visible_keys(p, t) > 0) continue;
      zero_row(p.grad_query, p, b, t, h);
      if (p.grad_gates != nullptr) p.grad_gates[(b * p.queries + t) * p.num_heads + h] = 0;
    }
  });
}

}  // namespace

void head_attention_backward(const HeadAttentionParams& p) {
  clear_skipped(p);
  const RowLists lists = row_lists(p);
  const int64_t group = p.num_heads / p.num_kv_heads, all_kv = p.batch * p.num_kv_heads;
  if (all_kv == 0 || p.keys == 0) return;
  const int64_t padded = round_up(p.head_dim, kWidth), capacity = round_up(p.keys, kPanel);
  const int64_t row_blocks = group * ((p.queries + kBlockRows - 1) / kBlockRows);
  const int64_t wanted = (2 * p.parallel.num_threads + all_kv - 1) / all_kv;
  const int64_t parts = p.parallel.num_threads == 1 ? 1 : max_of(1, min_of(wanted, row_blocks / 2));
  const int64_t gradient_size = p.keys * padded;
  // Gradients of keys and values of every (KV head, part), added up at the end.
  const Buffer<float> grad_keys(parts > 1 ? all_kv * parts * gradient_size : 0);
  const Buffer<float> grad_values(parts > 1 ? all_kv * parts * gradient_size : 0);
  const auto write_gradients = [&](int64_t kv, const float* grad_key, const float* grad_value) {
    for (int64_t s = 0; s < p.keys; ++s) {
      const int64_t b = kv / p.num_kv_heads, kv_head = kv % p.num_kv_heads;
      // The rows were scaled by scale * log2(e) for the scores.
      write_row(at(p.grad_key, p.dtype, b, s, kv_head), p.grad_key.stride[3], grad_key + s * padded, p.head_dim,
                p.dtype, kLn2);
      write_row(at(p.grad_value, p.dtype, b, s, kv_head), p.grad_value.stride[3], grad_value + s * padded, p.head_dim,
                p.dtype, 1.0F);
    }
  };

  int64_t next = 0;
  const int workers = static_cast<int>(min_of(p.parallel.num_threads, all_kv * parts));
  p.parallel(workers, [&](int) {
    const Packed packed(capacity, p.head_dim, padded);
    const Scratch scratch(padded);
    const Buffer<float> own_keys(parts > 1 ? 0 : gradient_size), own_values(parts > 1 ? 0 : gradient_size);
    for (;;) {
      const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (item >= all_kv * parts) return;
      const int64_t kv = item / parts, part = item % parts, b = kv / p.num_kv_heads, kv_head = kv % p.num_kv_heads;
      float* grad_key = parts > 1 ? &grad_keys[item * gradient_size] : own_keys.data;
      float* grad_value = parts > 1 ? &grad_values[item * gradient_size] : own_values.data;
      memset(grad_key, 0, static_cast<size_t>(gradient_size) * sizeof(float));
      memset(grad_value, 0, static_cast<size_t>(gradient_size) * sizeof(float));
      bool is_packed = false;
      int64_t block_number = 0;  // blocks go to the parts in turn, so that causal rows are spread evenly
      for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        const int64_t bh = b * p.num_heads + h;
        for (int64_t row = 0; row < lists.count(bh); row += kBlockRows) {
          if (block_number++ % parts != part) continue;
          if (!is_packed) {
            pack_transposed(packed.keys_transposed.data, p.key, p, b, kv_head, 0, p.keys);
            pack_transposed(packed.values_transposed.data, p.value, p, b, kv_head, 0, p.keys);
            pack_rows(packed.keys.data, p.key, p, b, kv_head, 0, p.keys, capacity, padded);
            is_packed = true;
          }
          backward_block(p, b, h, lists.begin(bh) + row, min_of(kBlockRows, lists.count(bh) - row), packed, capacity,
                         padded, scratch, grad_key, grad_value);
        }
      }
      if (parts == 1) write_gradients(kv, grad_key, grad_value);
    }
  });
  if (parts == 1) return;
  for_each_item(p.parallel, all_kv, [&](int64_t kv) {
    float *grad_key = &grad_keys[kv * parts * gradient_size], *grad_value = &grad_values[kv * parts * gradient_size];
    for (int64_t part = 1; part < parts; ++part) {
      for (int64_t i = 0; i < gradient_size; i += kWidth) {
        store(grad_key + i, load(grad_key + i) + load(grad_key + part * gradient_size + i));
        store(grad_value + i, load(grad_value + i) + load(grad_value + part * gradient_size + i));
      }
    }
    write_gradients(kv, grad_key, grad_value);
  });
}

}  // namespace moh::kernels::MOH_ISA
