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
#if defined(MOH_PAIRS)
  #include "moh/kernels/cpu/backward_pairs.h"
#else
  #include "moh/kernels/cpu/backward_block.h"
#endif

namespace moh::kernels::MOH_ISA {
namespace {

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
    write_row(at(p.grad_key, p.dtype, sequence.batch, key, kv_head), p.grad_key.stride[3], gradients.key + s * padded,
              p.head_dim, p.dtype, key_factor(p));
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
    const Scratch scratch(p.head_dim, padded);
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
            packed.fill(p, sequence, item.kv_head, capacity, padded);
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
