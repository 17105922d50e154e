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

// The tokens of one part of map b that selected the head, numbered in the map.
struct PartRows {
  Buffer<int32_t> own;
  const int32_t* rows;
  int64_t count;
  PartRows(const AggregatedAttentionParams& p, int64_t b, int64_t h, int64_t first_token, int64_t end_token)
      : own(end_token - first_token), rows(own.data) {
    const int64_t first_row = b * p.map();
    const HeadRows all = rows_between(p.selection, h, first_row + first_token, first_row + end_token);
    count = all.count;
    for (int64_t i = 0; i < count; ++i) own[i] = static_cast<int32_t>(all.rows[i] - first_row);
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
      read_row(&key[(n - first) * dim], row_at(p.key, p.dtype, b, n, h), p.key.stride[3], p.head_dim, dim, p.dtype,
               1.0F);
      read_row(&value[(n - first) * dim], row_at(p.value, p.dtype, b, n, h), p.value.stride[3], p.head_dim, dim,
               p.dtype, 1.0F);
    }
    for (int64_t n = first; n < last; ++n) normalize(&key[(n - first) * dim], dim);
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
      read_row(&key[m * padded.dim], row_at(p.pool_key, p.dtype, b, m, h), p.pool_key.stride[3], p.head_dim, padded.dim,
               p.dtype, 1.0F);
      read_row(&value[m * padded.dim], row_at(p.pool_value, p.dtype, b, m, h), p.pool_value.stride[3], p.head_dim,
               padded.dim, p.dtype, 1.0F);
    }
    for (int64_t m = 0; m < p.pooled; ++m) normalize(&key[m * padded.dim], padded.dim);
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

// What one head learned of its places: tokens [dim, padded places] and transposed [places, padded dim], their bias and
// the window's, zeros beyond the places; and its query embedding.
struct LearnedTokens {
  Buffer<float> tokens, transposed, embedding, token_bias, local_bias;
  LearnedTokens(const AggregatedAttentionParams& p, const Padded& padded)
      : tokens(p.head_dim * padded.places),
        transposed(p.places() * padded.dim),
        embedding(padded.dim),
        token_bias(padded.places),
        local_bias(padded.places) {}
  void pack(const AggregatedAttentionParams& p, const Padded& padded, int64_t h) {
    const int64_t places = p.places();
    clear(tokens.data, p.head_dim * padded.places);
    clear(transposed.data, places * padded.dim);
    clear(embedding.data, padded.dim);
    for (int64_t j = 0; j < padded.places; ++j) {
      token_bias[j] = j < places ? p.token_bias[h * places + j] : 0.0F;
      local_bias[j] = j < places ? p.local_bias[h * places + j] : 0.0F;
    }
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
  Buffer<int32_t> neighbour;     // place j's token as an index into LocalKeys, -1 outside, [rows, padded places]
  Buffer<int32_t> down, right;   // from a token to its place j, [padded places]
  Weights(const AggregatedAttentionParams& p, const Padded& padded)
      : query(kMapBlock * padded.dim),
        scaled(kMapBlock * padded.dim),
        inverse_norm(kMapBlock),
        local(kMapBlock * padded.places),
        learned(kMapBlock * padded.places),
        pool(kMapBlock * padded.pooled),
        neighbour(kMapBlock * padded.places),
        down(padded.places),
        right(padded.places) {
    for (int64_t j = 0; j < padded.places; ++j) {  // beyond the places: below the map, wherever the token is
      down[j] = static_cast<int32_t>(j < p.places() ? j / p.window - p.window / 2 : p.height);
      right[j] = static_cast<int32_t>(j % p.window - p.window / 2);
    }
  }

  void compute(const AggregatedAttentionParams& p, const Padded& padded, int64_t b, int64_t h, const int32_t* rows,
               int64_t count, const LocalKeys& keys, const PooledKeys& pooled, const LearnedTokens& learned_tokens) {
    const int64_t dim = padded.dim;
    // Short loops, so that many rows are under way at a time: within a row every number waits for the one before.
    for (int64_t i = 0; i < count; ++i) {
      read_row(&query[i * dim], row_at(p.query, p.dtype, b, rows[i], h), p.query.stride[3], p.head_dim, dim, p.dtype,
               1.0F);
    }
    for (int64_t i = 0; i < count; ++i) {
      float *const q = &query[i * dim], *const u = &scaled[i * dim];
      inverse_norm[i] = normalize(q, dim);
      const float factor = p.temperature[h] * p.position_scale[rows[i]];
      for (int64_t d = 0; d < dim; d += kWidth)
        store(u + d, (load(q + d) + load(&learned_tokens.embedding[d])) * factor);
    }
    for (int64_t i = 0; i < count; ++i) {  // the biases, to which the products add
      for (int64_t j = 0; j < padded.places; j += kWidth)
        store(&learned[i * padded.places + j], load(&learned_tokens.token_bias[j]));
      float* const far = &pool[i * padded.pooled];
      read_row(far, reinterpret_cast<const char*>(p.pool_bias + (h * p.map() + rows[i]) * p.pooled), 1, p.pooled,
               p.pooled, DType::kFloat32, 1.0F);
      for (int64_t m = p.pooled; m < padded.pooled; ++m) far[m] = -INFINITY;
    }
    multiply(count, padded.places, p.head_dim, query.data, dim, 1, learned_tokens.tokens.data, padded.places,
             learned.data, padded.places, true);
    multiply(count, padded.pooled, p.head_dim, scaled.data, dim, 1, pooled.key_transposed.data, padded.pooled,
             pool.data, padded.pooled, true);
    for (int64_t i = 0; i < count; ++i) window_scores(p, padded, rows[i], i, keys);
    for (int64_t i = 0; i < count; ++i) softmax(padded, i, learned_tokens);
  }

 private:
  // Neighbours of token n and u . k^; a place outside the map gets any number.
  void window_scores(const AggregatedAttentionParams& p, const Padded& padded, int64_t n, int64_t i,
                     const LocalKeys& keys) {
    const int32_t width = static_cast<int32_t>(p.width), height = static_cast<int32_t>(p.height);
    const int32_t y = static_cast<int32_t>(n) / width, x = static_cast<int32_t>(n) % width;
    const int32_t first = static_cast<int32_t>(keys.first_row), self = (y - first) * width + x;
    int32_t* const where = &neighbour[i * padded.places];
    for (int64_t j = 0; j < padded.places; j += kWidth) {
      const IntVec row = load(&down[j]) + y, column = load(&right[j]) + x;
      const IntVec inside = (row >= 0) & (row < height) & (column >= 0) & (column < width);
      store(where + j, inside ? (row - first) * width + column : -1 - IntVec{});
    }
    for (int64_t j = 0; j < p.places(); ++j) {
      const int64_t token = where[j] < 0 ? self : where[j];
      local[i * padded.places + j] = dot(&scaled[i * padded.dim], &keys.key[token * padded.dim], padded.dim);
    }
  }

  void softmax(const Padded& padded, int64_t i, const LearnedTokens& learned_tokens) {
    float *const scores = &local[i * padded.places], *const extra = &learned[i * padded.places];
    float* const far = &pool[i * padded.pooled];
    Vec best = splat(-INFINITY);
    for (int64_t j = 0; j < padded.places; j += kWidth) {
      const IntVec outside = load(&neighbour[i * padded.places + j]) < 0;
      const Vec score = outside ? splat(-INFINITY) : load(scores + j) + load(&learned_tokens.local_bias[j]);
      best = max_of(best, score);
      store(scores + j, score);
      store(extra + j, outside ? Vec{} : load(extra + j));
    }
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
