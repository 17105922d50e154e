// Shared by the forward and backward pass of aggregated attention: parts of the map, packed copies, and the attention
// weights of a block of rows.
#pragma once

#include <math.h>

#include "moh/kernels/aggregated_attention.h"
#include "moh/kernels/cpu/product.h"
#include "moh/kernels/cpu/row_lists.h"

namespace moh::kernels::MOH_ISA {

constexpr int64_t kMapBlock = 48;  // rows (tokens that selected the head) that share the products
constexpr float kLog2OfE = 1.44269504088896341F, kSmallestNorm = 1e-12F;

static inline const char* row_at(const Strided<const void*, 4>& tensor, DType dtype, int64_t b, int64_t n, int64_t h) {
  return static_cast<const char*>(tensor.data) +
         (b * tensor.stride[0] + n * tensor.stride[1] + h * tensor.stride[2]) * size_of(dtype);
}
static inline char* row_at(const Strided<void*, 4>& tensor, DType dtype, int64_t b, int64_t n, int64_t h) {
  return static_cast<char*>(tensor.data) +
         (b * tensor.stride[0] + n * tensor.stride[1] + h * tensor.stride[2]) * size_of(dtype);
}

static inline float dot(const float* a, const float* b, int64_t padded) {
  Vec sum = load(a) * load(b);
  for (int64_t i = kWidth; i < padded; i += kWidth) sum += load(a + i) * load(b + i);
  return sum_in(sum);
}
static inline void add_scaled(float* to, float factor, const float* from, int64_t padded) {
  for (int64_t i = 0; i < padded; i += kWidth) store(to + i, load(to + i) + load(from + i) * factor);
}
static inline void scale_row(float* row, float factor, int64_t padded) {
  for (int64_t i = 0; i < padded; i += kWidth) store(row + i, load(row + i) * factor);
}
static inline void clear(float* data, int64_t count) { memset(data, 0, static_cast<size_t>(count) * sizeof(float)); }

// C [rows x columns] (+)= A B with columns a multiple of the vector width, however many.
static inline void multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row, int64_t a_k,
                            const float* b, int64_t b_row, float* c, int64_t c_row, bool accumulate) {
  for (int64_t column = 0; column < columns; column += kPanel) {
    product(rows, min_of(kPanel, columns - column), depth, a, a_row, a_k, b + column, b_row, c + column, c_row,
            accumulate);
  }
}

// Sizes in rows of whole vectors.
struct Padded {
  int64_t dim, pooled, places;
  explicit Padded(const AggregatedAttentionParams& p)
      : dim(round_up(p.head_dim, kWidth)), pooled(round_up(p.pooled, kWidth)), places(round_up(p.places(), kWidth)) {}
};

// The map is cut into parts of whole map rows: pieces of work whose keys stay in the cache.
struct MapParts {
  int64_t height, count;
  MapParts(const AggregatedAttentionParams& p, int64_t tasks_besides) {
    // About four tasks a thread and, so that the rows of neighbours that each part reads besides its own weigh little,
    // at least eight map rows; at least two half windows, so that the windows of every other part never meet.
    const int64_t wanted = max_of(1, (4 * p.parallel.num_threads + tasks_besides - 1) / tasks_besides);
    const int64_t fitting = max_of(1, 16384 / (p.width * round_up(p.head_dim, kWidth)));  // keys and values: 128 KB
    height = max_of(max_of(8, p.window - 1), min_of((p.height + wanted - 1) / wanted, fitting));
    height = min_of(height, p.height);
    count = (p.height + height - 1) / height;
  }
  int64_t begin(int64_t part) const { return part * height; }
  int64_t end(int64_t part, int64_t map_height) const { return min_of((part + 1) * height, map_height); }
};

// The tokens of one part that selected the head.
struct PartRows {
  const int32_t* rows;
  int64_t count;
  PartRows(const RowLists& lists, int64_t bh, int64_t first_token, int64_t end_token) {
    const int32_t* const all = lists.begin(bh);
    const int64_t first = first_not_below(all, lists.count(bh), first_token);
    rows = all + first;
    count = first_not_below(all, lists.count(bh), end_token) - first;
  }
};

// to = row / |row|; returns 1 / |row|.
static inline float normalize(float* row, int64_t padded) {
  const float norm = sqrtf(dot(row, row, padded));
  const float inverse = 1.0F / (norm > kSmallestNorm ? norm : kSmallestNorm);
  scale_row(row, inverse, padded);
  return inverse;
}

// Normalised keys and plain values of the map rows around a part, [tokens, padded dim].
struct LocalKeys {
  Buffer<float> key, value;
  int64_t first_row = 0;  // map row
  LocalKeys(const AggregatedAttentionParams& p, const MapParts& parts, int64_t dim)
      : key((parts.height + p.window - 1) * p.width * dim), value((parts.height + p.window - 1) * p.width * dim) {}
  void pack(const AggregatedAttentionParams& p, int64_t b, int64_t h, int64_t begin, int64_t end, int64_t dim) {
    first_row = max_of(0, begin - p.window / 2);
    const int64_t first = first_row * p.width, last = min_of(p.height, end + p.window / 2) * p.width;
    for (int64_t n = first; n < last; ++n) {
      float* const k = &key[(n - first) * dim];
      read_row(k, row_at(p.key, p.dtype, b, n, h), p.key.stride[3], p.head_dim, dim, p.dtype, 1.0F);
      normalize(k, dim);
      read_row(&value[(n - first) * dim], row_at(p.value, p.dtype, b, n, h), p.value.stride[3], p.head_dim, dim,
               p.dtype, 1.0F);
    }
  }
};

// Pooled keys (normalised) and values of one head: as rows [M, padded dim] and transposed [dim, padded M].
struct PooledKeys {
  Buffer<float> key, value, key_transposed, value_transposed;
  PooledKeys(const AggregatedAttentionParams& p, const Padded& padded)
      : key(p.pooled * padded.dim),
        value(p.pooled * padded.dim),
        key_transposed(p.head_dim * padded.pooled),
        value_transposed(p.head_dim * padded.pooled) {}
  void pack(const AggregatedAttentionParams& p, const Padded& padded, int64_t b, int64_t h, bool backward) {
    for (int64_t m = 0; m < p.pooled; ++m) {
      float *const k = &key[m * padded.dim], *const v = &value[m * padded.dim];
      read_row(k, row_at(p.pool_key, p.dtype, b, m, h), p.pool_key.stride[3], p.head_dim, padded.dim, p.dtype, 1.0F);
      normalize(k, padded.dim);
      read_row(v, row_at(p.pool_value, p.dtype, b, m, h), p.pool_value.stride[3], p.head_dim, padded.dim, p.dtype,
               1.0F);
    }
    transpose(p, padded, key, key_transposed);
    if (backward) transpose(p, padded, value, value_transposed);
  }

 private:
  static void transpose(const AggregatedAttentionParams& p, const Padded& padded, const Buffer<float>& from,
                        const Buffer<float>& to) {
    for (int64_t d = 0; d < p.head_dim; ++d) {
      for (int64_t m = 0; m < p.pooled; ++m) to[d * padded.pooled + m] = from[m * padded.dim + d];
      for (int64_t m = p.pooled; m < padded.pooled; ++m) to[d * padded.pooled + m] = 0;
    }
  }
};

// The learned tokens of one head, [dim, padded places] and transposed [places, padded dim], and its query embedding.
struct LearnedTokens {
  Buffer<float> tokens, transposed, embedding;
  LearnedTokens(const AggregatedAttentionParams& p, const Padded& padded)
      : tokens(p.head_dim * padded.places), transposed(p.places() * padded.dim), embedding(padded.dim) {}
  void pack(const AggregatedAttentionParams& p, const Padded& padded, int64_t h) {
    const int64_t places = p.places();
    clear(tokens.data, p.head_dim * padded.places);
    clear(transposed.data, places * padded.dim);
    clear(embedding.data, padded.dim);
    for (int64_t d = 0; d < p.head_dim; ++d) {
      embedding[d] = p.query_embedding[h * p.head_dim + d];
      for (int64_t j = 0; j < places; ++j) {
        const float value = p.tokens[(h * p.head_dim + d) * places + j];
        tokens[d * padded.places + j] = value;
        transposed[j * padded.dim + d] = value;
      }
    }
  }
};

// Rows of one block and their attention weights.
struct Weights {
  Buffer<float> query, scaled;   // q^ and u, [rows, padded dim]
  Buffer<float> inverse_norm;    // [rows]
  Buffer<float> local, learned;  // a_j and t_j, [rows, padded places]; both 0 where the place is outside the map
  Buffer<float> pool;            // a_m, [rows, padded pooled]
  Buffer<int32_t> neighbour;     // place j's token as an index into LocalKeys, -1 outside the map, [rows, places]
  Weights(const AggregatedAttentionParams& p, const Padded& padded)
      : query(kMapBlock * padded.dim),
        scaled(kMapBlock * padded.dim),
        inverse_norm(kMapBlock),
        local(kMapBlock * padded.places),
        learned(kMapBlock * padded.places),
        pool(kMapBlock * padded.pooled),
        neighbour(kMapBlock * p.places()) {}

  void compute(const AggregatedAttentionParams& p, const Padded& padded, int64_t b, int64_t h, const int32_t* rows,
               int64_t count, const LocalKeys& keys, const PooledKeys& pooled, const LearnedTokens& learned_tokens) {
    const int64_t dim = padded.dim;
    for (int64_t i = 0; i < count; ++i) {
      float *const q = &query[i * dim], *const u = &scaled[i * dim];
      read_row(q, row_at(p.query, p.dtype, b, rows[i], h), p.query.stride[3], p.head_dim, dim, p.dtype, 1.0F);
      inverse_norm[i] = normalize(q, dim);
      const float factor = p.temperature[h] * p.position_scale[rows[i]];
      for (int64_t d = 0; d < dim; d += kWidth)
        store(u + d, (load(q + d) + load(&learned_tokens.embedding[d])) * factor);
    }
    multiply(count, padded.places, p.head_dim, query.data, dim, 1, learned_tokens.tokens.data, padded.places,
             learned.data, padded.places, false);
    multiply(count, padded.pooled, p.head_dim, scaled.data, dim, 1, pooled.key_transposed.data, padded.pooled,
             pool.data, padded.pooled, false);
    for (int64_t i = 0; i < count; ++i) finish_row(p, padded, h, rows[i], i, keys);
  }

 private:
  void finish_row(const AggregatedAttentionParams& p, const Padded& padded, int64_t h, int64_t n, int64_t i,
                  const LocalKeys& keys) {
    const int64_t half = p.window / 2, places = p.places(), y = n / p.width, x = n % p.width;
    float *const scores = &local[i * padded.places], *const extra = &learned[i * padded.places];
    const float* const u = &scaled[i * padded.dim];
    int32_t* const where = &neighbour[i * places];
    int64_t j = 0;
    for (int64_t row = y - half; row <= y + half; ++row) {
      for (int64_t column = x - half; column <= x + half; ++column, ++j) {
        if (row < 0 || row >= p.height || column < 0 || column >= p.width) {
          where[j] = -1;
          scores[j] = -INFINITY;
          extra[j] = 0;
          continue;
        }
        where[j] = static_cast<int32_t>((row - keys.first_row) * p.width + column);
        scores[j] = dot(u, &keys.key[where[j] * padded.dim], padded.dim) + p.local_bias[h * places + j];
        extra[j] += p.token_bias[h * places + j];
      }
    }
    for (; j < padded.places; ++j) {
      scores[j] = -INFINITY;
      extra[j] = 0;
    }
    float* const far = &pool[i * padded.pooled];
    const float* const bias = p.pool_bias + (h * p.map() + n) * p.pooled;
    for (int64_t m = 0; m < p.pooled; ++m) far[m] += bias[m];
    for (int64_t m = p.pooled; m < padded.pooled; ++m) far[m] = -INFINITY;

    Vec best = load(scores);
    for (int64_t k = kWidth; k < padded.places; k += kWidth) best = max_of(best, load(scores + k));
    for (int64_t m = 0; m < padded.pooled; m += kWidth) best = max_of(best, load(far + m));
    const float max = max_in(best);  // finite: the token sees itself
    Vec sum = Vec{};
    for (int64_t k = 0; k < padded.places; k += kWidth) {
      const Vec e = exp2_of((load(scores + k) - max) * kLog2OfE);
      store(scores + k, e);
      sum += e;
    }
    for (int64_t m = 0; m < padded.pooled; m += kWidth) {
      const Vec e = exp2_of((load(far + m) - max) * kLog2OfE);
      store(far + m, e);
      sum += e;
    }
    const float inverse = 1.0F / sum_in(sum);
    scale_row(scores, inverse, padded.places);
    scale_row(far, inverse, padded.pooled);
  }
};

}  // namespace moh::kernels::MOH_ISA
