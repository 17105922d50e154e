// Fused aggregated attention, backward, on CPUs. For a row with weights a, learned weights t and g = gate (see
// moh/kernels/aggregated_attention.h), with G = grad_out:
//
//   da_j = G . value_j, da_m = G . pool_value_m       grad_gate = sum_j (a_j + t_j) da_j + sum_m a_m da_m
//   ds = g a (da - sum a da)                          grad_local_bias += ds_j, grad_pool_bias += ds_m
//   du = sum_j ds_j k^_j + sum_m ds_m p^_m            grad_temperature += position_scale du . (q^ + e)
//   dq^ = f du + sum_j g da_j tokens_j                grad_query_embedding += f du, with f = temperature position_scale
//   dk^_j += ds_j u, dv_j += g (a_j + t_j) G          the same for pooled keys and values, without t
//   d tokens_j += g da_j q^, d token_bias_j += g da_j
//   dx = (dx^ - x^ (x^ . dx^)) / |x| for x = q, k, p
//
// Only tokens that selected the head are computed; weights are recomputed, nothing is saved by the forward pass.
// Deterministic: a task is a head and a part of the map. It owns the position bias of its tokens and loops over the
// batch; its windows reach into the neighbouring parts, so even parts run first, then odd ones. What is summed over
// parts or the batch is kept per task and added in order.
#include "moh/kernels/cpu/aggregated_work.h"

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int64_t kRowsAtOnce = 64;  // of what is cleared and written as one piece of work

// Gradients in fp32 while they are summed.
struct Sums {
  Buffer<float> key, value;            // of normalised keys and of values, [B, H, N, padded dim]
  Buffer<float> pool_key, pool_value;  // [parts, B, H, M, padded dim]
  Buffer<float> learned;               // [parts, H, learned_size]
  int64_t learned_size;                // tokens [places, padded dim], token bias, local bias, embedding, temperature
  Sums(const AggregatedAttentionParams& p, const Padded& padded, int64_t parts)
      : key(p.batch * p.map() * p.num_heads * padded.dim),
        value(p.batch * p.map() * p.num_heads * padded.dim),
        pool_key(parts * p.batch * p.num_heads * p.pooled * padded.dim),
        pool_value(parts * p.batch * p.num_heads * p.pooled * padded.dim),
        learned(parts * p.num_heads * size_of_learned(padded)),
        learned_size(size_of_learned(padded)) {}
  static int64_t size_of_learned(const Padded& padded) {
    return (padded.places + 1) * padded.dim + 2 * padded.places + kWidth;
  }
};

struct Learned {  // one task's share of Sums::learned
  float *tokens, *token_bias, *local_bias, *embedding, *temperature;
  Learned(float* data, const Padded& padded)
      : tokens(data),
        token_bias(tokens + padded.places * padded.dim),
        local_bias(token_bias + padded.places),
        embedding(local_bias + padded.places),
        temperature(embedding + padded.dim) {}
};

struct Scratch {
  LocalKeys keys;
  PooledKeys pooled;
  LearnedTokens learned;
  Weights weights;
  Buffer<float> grad, grad_local, grad_pool, grad_scaled, grad_query;
  Scratch(const AggregatedAttentionParams& p, const Padded& padded, const MapParts& parts)
      : keys(p, parts, padded.dim),
        pooled(p, padded),
        learned(p, padded),
        weights(p, padded),
        grad(kMapBlock * padded.dim),
        grad_local(kMapBlock * padded.places),
        grad_pool(kMapBlock * padded.pooled),
        grad_scaled(kMapBlock * padded.dim),
        grad_query(kMapBlock * padded.dim) {}
};

// d x = (d x^ - x^ (x^ . d x^)) / |x|; with a norm below the floor x^ is linear in x.
void unnormalize(float* grad, const float* unit, float inverse_norm, int64_t padded) {
  const float along = inverse_norm < 1.0F / kSmallestNorm ? dot(grad, unit, padded) : 0.0F;
  for (int64_t d = 0; d < padded; d += kWidth)
    store(grad + d, (load(grad + d) - load(unit + d) * along) * inverse_norm);
}

// From da to ds, row by row. The block's weights become what the sums after it need: `pool` g a, `local` ds, `learned`
// g (a + t), and in the scratch grad_pool ds, grad_local g da.
void score_gradients(const AggregatedAttentionParams& p, const Padded& padded, int64_t b, int64_t h,
                     const int32_t* rows, int64_t count, const Scratch& s, const Learned& mine) {
  const int64_t dim = padded.dim, heads = p.num_heads;
  const Weights& w = s.weights;
  for (int64_t i = 0; i < count; ++i) {  // da of the window
    for (int64_t j = 0; j < padded.places; ++j) {
      const int64_t neighbour = w.neighbour[i * padded.places + j];  // -1 beyond the places too
      s.grad_local[i * padded.places + j] =
          neighbour < 0 ? 0.0F : dot(&s.grad[i * dim], &s.keys.value[neighbour * dim], dim);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = rows[i];
    const float gate = p.selection.gates[(b * p.map() + n) * heads + h];
    float *const local = &w.local[i * padded.places], *const learned = &w.learned[i * padded.places];
    float *const grad_local = &s.grad_local[i * padded.places], *const grad_pool = &s.grad_pool[i * padded.pooled];
    float* const pool = &w.pool[i * padded.pooled];
    float* const grad_bias = p.grad_pool_bias + (h * p.map() + n) * p.pooled;
    const float delta = dot(local, grad_local, padded.places) + dot(pool, grad_pool, padded.pooled);
    p.grad_gates[(b * p.map() + n) * heads + h] = delta + dot(learned, grad_local, padded.places);

    // Pooled keys: ds in place of da, g a in place of a.
    for (int64_t m = 0; m < padded.pooled; m += kWidth) {
      const Vec gated = load(pool + m) * gate;
      store(grad_pool + m, gated * (load(grad_pool + m) - delta));
      store(pool + m, gated);
    }
    for (int64_t m = 0; m < p.pooled; ++m) grad_bias[m] += grad_pool[m];

    // The window: ds in place of a, g (a + t) in place of t, g da in place of da. All 0 outside the map.
    for (int64_t j = 0; j < padded.places; j += kWidth) {
      const Vec a = load(local + j), da = load(grad_local + j), ds = a * gate * (da - delta), gated = da * gate;
      store(&mine.local_bias[j], load(&mine.local_bias[j]) + ds);
      store(&mine.token_bias[j], load(&mine.token_bias[j]) + gated);
      store(learned + j, (a + load(learned + j)) * gate);
      store(local + j, ds);
      store(grad_local + j, gated);
    }
  }
}

// The window's share of du, and of the gradients of its keys and values.
void window_gradients(const AggregatedAttentionParams& p, const Padded& padded, int64_t b, int64_t h, int64_t count,
                      const Scratch& s, const Sums& sums) {
  const int64_t dim = padded.dim, places = p.places();
  const Weights& w = s.weights;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t d = 0; d < dim; d += kWidth) {
      const Vec u = load(&w.scaled[i * dim + d]), grad = load(&s.grad[i * dim + d]);
      Vec du = Vec{};
      for (int64_t j = 0; j < places; ++j) {
        const int64_t neighbour = w.neighbour[i * padded.places + j];
        if (neighbour < 0) continue;
        const float ds = w.local[i * padded.places + j];
        const int64_t token = s.keys.first_row * p.width + neighbour;
        const int64_t place = ((b * p.num_heads + h) * p.map() + token) * dim + d;
        du += load(&s.keys.key[neighbour * dim + d]) * ds;
        store(&sums.key[place], load(&sums.key[place]) + u * ds);
        store(&sums.value[place], load(&sums.value[place]) + grad * w.learned[i * padded.places + j]);
      }
      store(&s.grad_scaled[i * dim + d], du);
    }
  }
}

void backward_block(const AggregatedAttentionParams& p, const Padded& padded, int64_t b, int64_t h, const int32_t* rows,
                    int64_t count, const Scratch& s, const Sums& sums, float* pool_key, float* pool_value,
                    const Learned& mine) {
  const int64_t dim = padded.dim, places = p.places();
  const Weights& w = s.weights;
  for (int64_t i = 0; i < count; ++i) {
    read_row(&s.grad[i * dim], row_at(p.grad_out, p.dtype, b, rows[i], h), p.grad_out.stride[3], p.head_dim, dim,
             p.dtype, 1.0F);
  }
  multiply(count, padded.pooled, p.head_dim, s.grad.data, dim, 1, s.pooled.value_transposed.data, padded.pooled,
           s.grad_pool.data, padded.pooled, false);
  score_gradients(p, padded, b, h, rows, count, s, mine);
  window_gradients(p, padded, b, h, count, s, sums);
  multiply(count, dim, p.pooled, s.grad_pool.data, padded.pooled, 1, s.pooled.key.data, dim, s.grad_scaled.data, dim,
           true);
  multiply(p.pooled, dim, count, s.grad_pool.data, 1, padded.pooled, w.scaled.data, dim, pool_key, dim, true);
  multiply(p.pooled, dim, count, w.pool.data, 1, padded.pooled, s.grad.data, dim, pool_value, dim, true);
  multiply(count, dim, places, s.grad_local.data, padded.places, 1, s.learned.transposed.data, dim, s.grad_query.data,
           dim, false);
  multiply(places, dim, count, s.grad_local.data, 1, padded.places, w.query.data, dim, mine.tokens, dim, true);
  for (int64_t i = 0; i < count; ++i) {
    const float position = p.position_scale[rows[i]], factor = p.temperature[h] * position;
    const float *const unit = &w.query[i * dim], *const du = &s.grad_scaled[i * dim];
    float* const grad = &s.grad_query[i * dim];
    Vec along = Vec{};
    for (int64_t d = 0; d < dim; d += kWidth) {
      along += load(du + d) * (load(unit + d) + load(&s.learned.embedding[d]));
      store(grad + d, load(grad + d) + load(du + d) * factor);
    }
    add_scaled(mine.embedding, factor, du, dim);
    mine.temperature[0] += position * sum_in(along);
    unnormalize(grad, unit, w.inverse_norm[i], dim);
    write_row(row_at(p.grad_query, p.dtype, b, rows[i], h), p.grad_query.stride[3], grad, p.head_dim, p.dtype, 1.0F);
  }
}

void backward_part(const AggregatedAttentionParams& p, const Padded& padded, const MapParts& parts, int64_t h,
                   int64_t part, Scratch& s, const Sums& sums) {
  const int64_t begin = parts.begin(part), end = parts.end(part, p.height), pool_size = p.pooled * padded.dim;
  const Learned mine(&sums.learned[(part * p.num_heads + h) * sums.learned_size], padded);
  clear(mine.tokens, sums.learned_size);
  clear(p.grad_pool_bias + (h * p.map() + begin * p.width) * p.pooled, (end - begin) * p.width * p.pooled);
  s.learned.pack(p, padded, h);
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t place = ((part * p.batch + b) * p.num_heads + h) * pool_size;
    clear(&sums.pool_key[place], pool_size);
    clear(&sums.pool_value[place], pool_size);
    const PartRows rows(p, b, h, begin * p.width, end * p.width);
    if (rows.count == 0) continue;
    s.pooled.pack(p, padded, b, h, /*backward=*/true);
    s.keys.pack(p, b, h, begin, end, padded.dim);
    for (int64_t first = 0; first < rows.count; first += kMapBlock) {
      const int64_t count = min_of(kMapBlock, rows.count - first);
      s.weights.compute(p, padded, b, h, rows.rows + first, count, s.keys, s.pooled, s.learned);
      backward_block(p, padded, b, h, rows.rows + first, count, s, sums, &sums.pool_key[place], &sums.pool_value[place],
                     mine);
    }
  }
}

// Zeros where a head was skipped, and where sums begin.
void clear_gradients(const AggregatedAttentionParams& p, const Padded& padded, const Sums& sums) {
  const int64_t per_batch = (p.map() + kRowsAtOnce - 1) / kRowsAtOnce;
  for_each_item(p.parallel, p.batch * per_batch, [&](int64_t item) {
    const int64_t b = item / per_batch, begin = item % per_batch * kRowsAtOnce;
    const int64_t end = min_of(begin + kRowsAtOnce, p.map());
    for (int64_t h = 0; h < p.num_heads; ++h) {
      const int64_t first = ((b * p.num_heads + h) * p.map() + begin) * padded.dim;
      clear(&sums.key[first], (end - begin) * padded.dim);
      clear(&sums.value[first], (end - begin) * padded.dim);
    }
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t h = 0; h < p.num_heads; ++h) {
        const int64_t gate = (b * p.map() + n) * p.num_heads + h;
        if (p.selection.gates[gate] != 0) continue;
        p.grad_gates[gate] = 0;
        clear_row(row_at(p.grad_query, p.dtype, b, n, h), p.grad_query.stride[3], p.head_dim, p.dtype);
      }
    }
  });
}

// From gradients of normalised keys to those of keys, in the tensors' type: `count` <= kRowsAtOnce tokens from n on.
// `grad`, [count, padded dim], is overwritten.
void write_keys(const AggregatedAttentionParams& p, const Padded& padded, const Strided<const void*, 4>& key,
                const Strided<void*, 4>& grad_key, int64_t b, int64_t n, int64_t h, int64_t count, float* grad) {
  const int64_t dim = padded.dim;
  const Buffer<float> unit(kRowsAtOnce * dim);
  for (int64_t i = 0; i < count; ++i) {
    read_row(&unit[i * dim], row_at(key, p.dtype, b, n + i, h), key.stride[3], p.head_dim, dim, p.dtype, 1.0F);
  }
  for (int64_t i = 0; i < count; ++i) {
    const float inverse = normalize(&unit[i * dim], dim);
    unnormalize(grad + i * dim, &unit[i * dim], inverse, dim);
  }
  for (int64_t i = 0; i < count; ++i) {
    write_row(row_at(grad_key, p.dtype, b, n + i, h), grad_key.stride[3], grad + i * dim, p.head_dim, p.dtype, 1.0F);
  }
}

void write_all_keys(const AggregatedAttentionParams& p, const Padded& padded, const Sums& sums, int64_t parts) {
  const int64_t per_head = (p.map() + kRowsAtOnce - 1) / kRowsAtOnce, heads = p.num_heads, dim = padded.dim;
  for_each_item(p.parallel, p.batch * heads * per_head, [&](int64_t item) {
    const int64_t bh = item / per_head, b = bh / heads, h = bh % heads, begin = item % per_head * kRowsAtOnce;
    const int64_t end = min_of(begin + kRowsAtOnce, p.map()), place = (bh * p.map() + begin) * dim;
    write_keys(p, padded, p.key, p.grad_key, b, begin, h, end - begin, &sums.key[place]);
    for (int64_t n = begin; n < end; ++n) {
      write_row(row_at(p.grad_value, p.dtype, b, n, h), p.grad_value.stride[3], &sums.value[(bh * p.map() + n) * dim],
                p.head_dim, p.dtype, 1.0F);
    }
  });
  for_each_item(p.parallel, p.batch * heads, [&](int64_t bh) {
    const int64_t b = bh / heads, h = bh % heads, size = p.pooled * dim, step = p.batch * heads * size;
    float *const key = &sums.pool_key[bh * size], *const value = &sums.pool_value[bh * size];
    for (int64_t part = 1; part < parts; ++part) {
      add_scaled(key, 1.0F, key + part * step, size);
      add_scaled(value, 1.0F, value + part * step, size);
    }
    for (int64_t m = 0; m < p.pooled; m += kRowsAtOnce) {
      write_keys(p, padded, p.pool_key, p.grad_pool_key, b, m, h, min_of(kRowsAtOnce, p.pooled - m), key + m * dim);
    }
    for (int64_t m = 0; m < p.pooled; ++m) {
      write_row(row_at(p.grad_pool_value, p.dtype, b, m, h), p.grad_pool_value.stride[3], value + m * dim, p.head_dim,
                p.dtype, 1.0F);
    }
  });
}

void write_learned(const AggregatedAttentionParams& p, const Padded& padded, const Sums& sums, int64_t parts) {
  const int64_t places = p.places(), dim = p.head_dim;
  for (int64_t h = 0; h < p.num_heads; ++h) {
    float* const first = &sums.learned[h * sums.learned_size];
    for (int64_t part = 1; part < parts; ++part) {
      add_scaled(first, 1.0F, first + part * p.num_heads * sums.learned_size, sums.learned_size);
    }
    const Learned sum(first, padded);
    p.grad_temperature[h] = sum.temperature[0];
    for (int64_t d = 0; d < dim; ++d) p.grad_query_embedding[h * dim + d] = sum.embedding[d];
    for (int64_t j = 0; j < places; ++j) {
      p.grad_local_bias[h * places + j] = sum.local_bias[j];
      p.grad_token_bias[h * places + j] = sum.token_bias[j];
      for (int64_t d = 0; d < dim; ++d) p.grad_tokens[(h * dim + d) * places + j] = sum.tokens[j * padded.dim + d];
    }
  }
}

}  // namespace

void aggregated_attention_backward(const AggregatedAttentionParams& p) {
  const Padded padded(p);
  const MapParts parts(p, p.num_heads);
  const Sums sums(p, padded, parts.count);
  clear_gradients(p, padded, sums);
  for (int64_t odd = 0; odd < 2; ++odd) {
    const int64_t these = (parts.count + 1 - odd) / 2;
    int64_t next = 0;
    const int workers = static_cast<int>(min_of(p.parallel.num_threads, these * p.num_heads));
    p.parallel(workers, [&](int) {
      Scratch scratch(p, padded, parts);
      for (;;) {
        const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        if (item >= these * p.num_heads) return;
        backward_part(p, padded, parts, item % p.num_heads, item / p.num_heads * 2 + odd, scratch, sums);
      }
    });
  }
  write_all_keys(p, padded, sums, parts.count);
  write_learned(p, padded, sums, parts.count);
}

}  // namespace moh::kernels::MOH_ISA
