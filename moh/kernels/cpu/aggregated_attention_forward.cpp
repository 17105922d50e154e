// Fused aggregated attention, forward, on CPUs: normalisation, scores of window and pooled keys, one softmax, learned
// tokens, values and gate. Only tokens that selected the head are computed. Read once: query rows that are used, keys
// and values (packed part by part of the map); written once: out.
#include "moh/kernels/cpu/aggregated_work.h"

namespace moh::kernels::MOH_ISA {
namespace {

void clear_skipped(const AggregatedAttentionParams& p) {
  constexpr int64_t kRowsAtOnce = 256;
  const int64_t per_batch = (p.map() + kRowsAtOnce - 1) / kRowsAtOnce;
  for_each_item(p.parallel, p.batch * per_batch, [&](int64_t item) {
    const int64_t b = item / per_batch, begin = item % per_batch * kRowsAtOnce;
    for (int64_t n = begin; n < min_of(begin + kRowsAtOnce, p.map()); ++n) {
      for (int64_t h = 0; h < p.num_heads; ++h) {
        if (p.selection.gates[(b * p.map() + n) * p.num_heads + h] != 0) continue;
        clear_row(row_at(p.out, p.dtype, b, n, h), p.out.stride[3], p.head_dim, p.dtype);
      }
    }
  });
}

// sum += (a_j + t_j) value_j over the places of the window inside the map.
void add_window(float* sum, const Weights& weights, int64_t i, const Padded& padded, int64_t places,
                const LocalKeys& keys) {
  const float *const local = &weights.local[i * padded.places], *const learned = &weights.learned[i * padded.places];
  const int32_t* const neighbour = &weights.neighbour[i * padded.places];
  for (int64_t d = 0; d < padded.dim; d += kWidth) {
    Vec total = load(sum + d);
    for (int64_t j = 0; j < places; ++j) {
      if (neighbour[j] < 0) continue;
      total += load(&keys.value[neighbour[j] * padded.dim + d]) * (local[j] + learned[j]);
    }
    store(sum + d, total);
  }
}

}  // namespace

void aggregated_attention_forward(const AggregatedAttentionParams& p) {
  clear_skipped(p);
  const Padded padded(p);
  const int64_t heads = p.batch * p.num_heads, places = p.places();
  const MapParts parts(p, heads);
  int64_t next = 0;
  const int workers = static_cast<int>(min_of(p.parallel.num_threads, heads * parts.count));
  p.parallel(workers, [&](int) {
    LocalKeys keys(p, parts, padded.dim);
    PooledKeys pooled(p, padded);
    LearnedTokens learned(p, padded);
    Weights weights(p, padded);
    const Buffer<float> sums(kMapBlock * padded.dim);
    int64_t packed = -1;
    for (;;) {
      const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (item >= heads * parts.count) return;
      // Parts, then the batch, then heads: the batch finds a head's position bias in the cache.
      const int64_t part = item % parts.count, b = item / parts.count % p.batch, h = item / parts.count / p.batch;
      const int64_t bh = b * p.num_heads + h;
      const int64_t begin = parts.begin(part), end = parts.end(part, p.height);
      const PartRows mine(p, b, h, begin * p.width, end * p.width);
      if (mine.count == 0) continue;
      if (packed != bh) {
        pooled.pack(p, padded, b, h, /*backward=*/false);
        learned.pack(p, padded, h);
        packed = bh;
      }
      keys.pack(p, b, h, begin, end, padded.dim);
      for (int64_t first = 0; first < mine.count; first += kMapBlock) {
        const int64_t count = min_of(kMapBlock, mine.count - first);
        const int32_t* const rows = mine.rows + first;
        weights.compute(p, padded, b, h, rows, count, keys, pooled, learned);
        multiply(count, padded.dim, p.pooled, weights.pool.data, padded.pooled, 1, pooled.value.data, padded.dim,
                 sums.data, padded.dim, false);
        for (int64_t i = 0; i < count; ++i) add_window(&sums[i * padded.dim], weights, i, padded, places, keys);
        for (int64_t i = 0; i < count; ++i) {
          const float gate = p.selection.gates[(b * p.map() + rows[i]) * p.num_heads + h];
          write_row(row_at(p.out, p.dtype, b, rows[i], h), p.out.stride[3], &sums[i * padded.dim], p.head_dim, p.dtype,
                    gate);
        }
      }
    }
  });
}

}  // namespace moh::kernels::MOH_ISA
