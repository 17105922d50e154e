// Fused head-sparse attention, forward, for KV heads that at most kFewRows rows need: a step of generation.
//
// Keys and values are read in place, once, for all rows of the KV head's group; a KV head without rows is not read at
// all. The keys are cut into parts of a fixed size, so that threads share a long context and results do not depend on
// how many there are; parts of one row are put together in their order:
//   m = max m_i,  l = sum 2^(m_i - m) l_i,  out = gate / l * sum 2^(m_i - m) sums_i
#include "moh/kernels/cpu/head_attention_decode.h"

#include "moh/kernels/cpu/softmax.h"

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int64_t kPartKeys = 256;  // 64 and 1024 were a tenth slower (Zen 5, 32 heads x 128, 4096 keys)
constexpr int64_t kStepKeys = 64;   // keys at a time: K and V of a step stay in L1
// A product's tile reads 256 bytes of each row of values with AVX-512, but 64 or 32 with the others, and comes back for
// the next: for several rows of queries a tenth faster than a row at a time with AVX-512, half slower with AVX2.
constexpr bool kWideTiles = kPanel * sizeof(float) >= 256;

struct Row {
  int64_t n, h, t, first, last;  // keys first <= s < last are visible
};

struct KvHead {
  int64_t n, kv_head, first_row, num_rows;
  int64_t first_part, end_part;  // of its keys: part i begins at key i * kPartKeys
  int64_t place;                 // of the first part's first row among all (part, row)
};

// The rows of all KV heads with few, and their queries.
struct Work {
  Buffer<KvHead> heads;
  Buffer<Row> rows;
  int64_t num_heads = 0, num_rows = 0, num_items = 0, num_places = 0;
  Work(const HeadAttentionParams& p, const SequenceRows& all)
      : heads(p.num_sequences * p.num_kv_heads), rows(p.num_sequences * p.num_kv_heads * kFewRows) {
    for (int64_t kv = 0; kv < p.num_sequences * p.num_kv_heads; ++kv) {
      if (all.count(kv) == 0 || all.count(kv) > kFewRows) continue;
      const int64_t n = kv / p.num_kv_heads, first_head = kv % p.num_kv_heads * all.group;
      const Sequence& sequence = p.sequences[n];
      int64_t first = sequence.keys, last = 0;
      KvHead head = {n, kv % p.num_kv_heads, num_rows, 0, 0, 0, num_places};
      for (int64_t h = first_head; h < first_head + all.group; ++h) {
        const HeadRows& list = all.of(n, h);
        for (int64_t i = 0; i < list.count; ++i) {
          const int64_t t = list.rows[i] - first_row_of(p, sequence);
          const Row row = {n, h, t, first_visible_key(p.variant, sequence, t), visible_keys(p.variant, sequence, t)};
          first = min_of(first, row.first);
          last = max_of(last, row.last);
          rows[num_rows++] = row;
        }
      }
      head.num_rows = num_rows - head.first_row;
      head.first_part = first / kPartKeys;
      head.end_part = (last + kPartKeys - 1) / kPartKeys;
      num_items += head.end_part - head.first_part;
      num_places += (head.end_part - head.first_part) * head.num_rows;
      heads[num_heads++] = head;
    }
  }
};

// Rows [count][padded] of keys or values from s on, in place where they are plain fp32 side by side, else converted.
const float* plain_rows(const Input4& tensor, const HeadAttentionParams& p, const Sequence& sequence, int64_t s,
                        int64_t kv_head, int64_t count, int64_t padded, float* scratch, int64_t* row_size) {
  if (p.dtype == DType::kFloat32 && tensor.stride[3] == 1 && padded == p.head_dim &&
      run_end(p, sequence, s, s + count) == s + count) {
    *row_size = tensor.stride[1];
    return reinterpret_cast<const float*>(key_row(tensor, p, sequence, s, kv_head));
  }
  for (int64_t i = 0; i < count; ++i) {
    read_row(scratch + i * padded, key_row(tensor, p, sequence, s + i, kv_head), tensor.stride[3], p.head_dim, padded,
             p.dtype, 1);
  }
  *row_size = padded;
  return scratch;
}

// sums[0, kCount vectors) += sum over i of weights[i] * values[i]
template <int kCount>
void add_weighted(const float* weights, const float* values, int64_t row_size, int64_t count, float* sums) {
  Vec total[kCount];
#pragma GCC unroll 8
  for (int v = 0; v < kCount; ++v) total[v] = load(sums + v * kWidth);
  for (int64_t i = 0; i < count; ++i) {
    const Vec weight = splat(weights[i]);
#pragma GCC unroll 8
    for (int v = 0; v < kCount; ++v) total[v] += weight * load(values + i * row_size + v * kWidth);
  }
#pragma GCC unroll 8
  for (int v = 0; v < kCount; ++v) store(sums + v * kWidth, total[v]);
}

// The same for a whole row of sums: a row of values is read from its begin to its end, as far as registers reach,
// because that is how memory gives it away fastest.
void add_weighted_row(const float* weights, const float* values, int64_t row_size, int64_t count, int64_t padded,
                      float* sums) {
  int64_t d = 0;
  for (; d + 8 * kWidth <= padded; d += 8 * kWidth) add_weighted<8>(weights, values + d, row_size, count, sums + d);
  for (; d + 4 * kWidth <= padded; d += 4 * kWidth) add_weighted<4>(weights, values + d, row_size, count, sums + d);
  for (; d + 2 * kWidth <= padded; d += 2 * kWidth) add_weighted<2>(weights, values + d, row_size, count, sums + d);
  if (d < padded) add_weighted<1>(weights, values + d, row_size, count, sums + d);
}

// One part of the keys of one KV head: states and sums of its rows.
void attend_part(const HeadAttentionParams& p, const KvHead& head, const Row* rows, const float* queries, int64_t part,
                 int64_t padded, float* scratch, State* states, float* sums) {
  const Sequence& sequence = p.sequences[head.n];
  int64_t first = sequence.keys, last = 0;
  for (int64_t r = 0; r < head.num_rows; ++r) {
    states[r] = {-INFINITY, 0.0F};
    first = min_of(first, rows[r].first);
    last = max_of(last, rows[r].last);
  }
  memset(sums, 0, static_cast<size_t>(head.num_rows * padded) * sizeof(float));
  float scores[kFewRows * kStepKeys];
  const int64_t begin = part * kPartKeys, end = min_of(begin + kPartKeys, last);
  for (int64_t s = begin; s < end; s += kStepKeys) {
    const int64_t count = min_of(kStepKeys, end - s);
    if (s + count <= first) continue;  // before every row's window
    int64_t row_size;
    const float* keys = plain_rows(p.key, p, sequence, s, head.kv_head, count, padded, scratch, &row_size);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t r = 0; r < head.num_rows; ++r) {
        Vec dot = Vec{};
        for (int64_t d = 0; d < padded; d += kWidth)
          dot += load(queries + r * padded + d) * load(keys + i * row_size + d);
        scores[r * kStepKeys + i] = sum_in(dot);
      }
    }
    for (int64_t r = 0; r < head.num_rows; ++r) {
      const int64_t seen = max_of(0, min_of(count, rows[r].last - s));
      const int64_t hidden = min_of(max_of(rows[r].first - s, 0), seen);
      float* const row = scores + r * kStepKeys;
      finish_scores(p, sequence, rows[r].h, rows[r].t, row, s, hidden, seen, nullptr);
      rescale(sums + r * padded, padded, softmax_block(row, seen, kStepKeys, states[r]));
    }
    const float* values = plain_rows(p.value, p, sequence, s, head.kv_head, count, padded, scratch, &row_size);
    if (kWideTiles && head.num_rows > 1) {
      for (int64_t panel = 0; panel * kPanel < padded; ++panel) {
        product(head.num_rows, panel_width(panel, padded), count, scores, kStepKeys, 1, values + panel * kPanel,
                row_size, sums + panel * kPanel, padded, true);
      }
    } else {
      for (int64_t r = 0; r < head.num_rows; ++r) {
        add_weighted_row(scores + r * kStepKeys, values, row_size, count, padded, sums + r * padded);
      }
    }
  }
}

// The parts of one row in their order, into the first of them.
State join_parts(int64_t parts, int64_t apart, const State* states, float* sums, int64_t padded) {
  State total = states[0];
  for (int64_t part = 1; part < parts; ++part) {
    const State other = states[part * apart];
    const float* other_sums = sums + part * apart * padded;
    if (other.max == -INFINITY && other.sum == 0) continue;  // saw no key
    const float best = total.max > other.max ? total.max : other.max;
    const float mine = exp2f(total.max - best), theirs = exp2f(other.max - best);
    for (int64_t d = 0; d < padded; ++d) sums[d] = sums[d] * mine + other_sums[d] * theirs;
    total = {best, total.sum * mine + other.sum * theirs};
  }
  return total;
}

}  // namespace

void forward_few(const HeadAttentionParams& p, const SequenceRows& rows) {
  const Work work(p, rows);
  if (work.num_rows == 0) return;
  const int64_t padded = round_up(p.head_dim, kWidth);
  const Buffer<float> queries(work.num_rows * padded);
  for (int64_t r = 0; r < work.num_rows; ++r) {
    const Row& row = work.rows[r];
    read_row(&queries[r * padded], query_row(p.query, p.dtype, p.sequences[row.n], row.t, row.h), p.query.stride[3],
             p.head_dim, padded, p.dtype, p.scale * kLog2E);
  }
  // The heads of one part follow each other: their keys are neighbours in memory.
  struct Item {
    int32_t head, part;
  };
  const Buffer<Item> items(work.num_items);
  int64_t num_items = 0;
  for (int64_t begin = 0, end; begin < work.num_heads; begin = end) {
    int64_t most = 0;
    for (end = begin; end < work.num_heads && work.heads[end].n == work.heads[begin].n; ++end) {
      most = max_of(most, work.heads[end].end_part);
    }
    for (int64_t part = 0; part < most; ++part) {
      for (int64_t i = begin; i < end; ++i) {
        if (part < work.heads[i].first_part || part >= work.heads[i].end_part) continue;
        items[num_items++] = {static_cast<int32_t>(i), static_cast<int32_t>(part)};
      }
    }
  }
  const Buffer<State> states(work.num_places);  // [head][part][row]
  const Buffer<float> sums(work.num_places * padded);
  for_each_item(p.parallel, num_items, [&](int64_t item) {
    const KvHead& head = work.heads[items[item].head];
    const int64_t place = head.place + (items[item].part - head.first_part) * head.num_rows;
    const Buffer<float> scratch(kStepKeys * padded);
    attend_part(p, head, &work.rows[head.first_row], &queries[head.first_row * padded], items[item].part, padded,
                scratch.data, &states[place], &sums[place * padded]);
  });
  for (int64_t i = 0; i < work.num_heads; ++i) {
    const KvHead& head = work.heads[i];
    for (int64_t r = 0; r < head.num_rows; ++r) {
      const Row& row = work.rows[head.first_row + r];
      float* const own = &sums[(head.place + r) * padded];
      const State total =
          join_parts(head.end_part - head.first_part, head.num_rows, &states[head.place + r], own, padded);
      write_output(p, p.sequences[row.n], row.h, row.t, own, total);
    }
  }
}

}  // namespace moh::kernels::MOH_ISA
