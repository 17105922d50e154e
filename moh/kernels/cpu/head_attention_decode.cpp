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
  int64_t b, h, t, visible;
};

struct KvHead {
  int64_t kv, first_row, num_rows, visible;
};

// The rows of all KV heads with few, and their queries.
struct Work {
  Buffer<KvHead> heads;
  Buffer<Row> rows;
  int64_t num_heads = 0, num_rows = 0, visible = 0;
  Work(const HeadAttentionParams& p, const RowLists& lists)
      : heads(p.batch * p.num_kv_heads), rows(p.batch * p.num_kv_heads * kFewRows) {
    const int64_t group = p.num_heads / p.num_kv_heads;
    for (int64_t kv = 0; kv < p.batch * p.num_kv_heads; ++kv) {
      if (!has_few_rows(lists, kv, group)) continue;
      KvHead head = {kv, num_rows, 0, 0};
      for (int64_t bh = kv * group; bh < (kv + 1) * group; ++bh) {
        for (int64_t i = 0; i < lists.count(bh); ++i) {
          const int64_t t = lists.begin(bh)[i];
          rows[num_rows++] = {bh / p.num_heads, bh % p.num_heads, t, visible_keys(p, t)};
          head.visible = max_of(head.visible, visible_keys(p, t));
        }
      }
      head.num_rows = num_rows - head.first_row;
      if (head.num_rows > 0) heads[num_heads++] = head;
      visible = max_of(visible, head.visible);
    }
  }
};

// Rows [count][padded] of keys or values from s on, in place where they are plain fp32, else converted.
const float* plain_rows(const Input4& tensor, const HeadAttentionParams& p, int64_t b, int64_t s, int64_t kv_head,
                        int64_t count, int64_t padded, float* scratch, int64_t* row_size) {
  if (p.dtype == DType::kFloat32 && tensor.stride[3] == 1 && padded == p.head_dim) {
    *row_size = tensor.stride[1];
    return reinterpret_cast<const float*>(at(tensor, p.dtype, b, s, kv_head));
  }
  for (int64_t i = 0; i < count; ++i) {
    read_row(scratch + i * padded, at(tensor, p.dtype, b, s + i, kv_head), tensor.stride[3], p.head_dim, padded,
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
void attend_part(const HeadAttentionParams& p, const KvHead& head, const Row* rows, const float* queries, int64_t begin,
                 int64_t padded, float* scratch, State* states, float* sums) {
  const int64_t b = head.kv / p.num_kv_heads, kv_head = head.kv % p.num_kv_heads;
  for (int64_t r = 0; r < head.num_rows; ++r) states[r] = {-INFINITY, 0.0F};
  memset(sums, 0, static_cast<size_t>(head.num_rows * padded) * sizeof(float));
  float scores[kFewRows * kStepKeys];
  const int64_t end = min_of(begin + kPartKeys, head.visible);
  for (int64_t s = begin; s < end; s += kStepKeys) {
    const int64_t count = min_of(kStepKeys, end - s);
    int64_t row_size;
    const float* keys = plain_rows(p.key, p, b, s, kv_head, count, padded, scratch, &row_size);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t r = 0; r < head.num_rows; ++r) {
        Vec dot = Vec{};
        for (int64_t d = 0; d < padded; d += kWidth)
          dot += load(queries + r * padded + d) * load(keys + i * row_size + d);
        scores[r * kStepKeys + i] = sum_in(dot);
      }
    }
    for (int64_t r = 0; r < head.num_rows; ++r) {
      const int64_t seen = max_of(0, min_of(count, rows[r].visible - s));
      if (p.bias.data != nullptr) add_bias(p, rows[r].b, rows[r].h, rows[r].t, scores + r * kStepKeys, s, seen);
      rescale(sums + r * padded, padded, softmax_block(scores + r * kStepKeys, seen, kStepKeys, states[r]));
    }
    const float* values = plain_rows(p.value, p, b, s, kv_head, count, padded, scratch, &row_size);
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

}  // namespace

void forward_few(const HeadAttentionParams& p, const RowLists& lists) {
  const Work work(p, lists);
  if (work.num_rows == 0) return;
  const int64_t padded = round_up(p.head_dim, kWidth), parts = (work.visible + kPartKeys - 1) / kPartKeys;
  const Buffer<float> queries(work.num_rows * padded);
  for (int64_t r = 0; r < work.num_rows; ++r) {
    const Row& row = work.rows[r];
    read_row(&queries[r * padded], at(p.query, p.dtype, row.b, row.t, row.h), p.query.stride[3], p.head_dim, padded,
             p.dtype, p.scale * kLog2E);
  }
  const Buffer<State> states(parts * work.num_rows);  // [part][row]
  const Buffer<float> sums(parts * work.num_rows * padded);
  // The heads of one part follow each other: their keys are neighbours in memory.
  for_each_item(p.parallel, parts * work.num_heads, [&](int64_t item) {
    const int64_t part = item / work.num_heads;
    const KvHead& head = work.heads[item % work.num_heads];
    const Buffer<float> scratch(kStepKeys * padded);
    const int64_t place = part * work.num_rows + head.first_row;
    attend_part(p, head, &work.rows[head.first_row], &queries[head.first_row * padded], part * kPartKeys, padded,
                scratch.data, &states[place], &sums[place * padded]);
  });
  for (int64_t r = 0; r < work.num_rows; ++r) {
    State total = states[r];
    float* total_sums = &sums[r * padded];
    for (int64_t part = 1; part < parts; ++part) {
      const State other = states[part * work.num_rows + r];
      const float* other_sums = &sums[(part * work.num_rows + r) * padded];
      if (other.max == -INFINITY && other.sum == 0) continue;  // saw no key
      const float best = total.max > other.max ? total.max : other.max;
      const float mine = exp2f(total.max - best), theirs = exp2f(other.max - best);
      for (int64_t d = 0; d < padded; ++d) total_sums[d] = total_sums[d] * mine + other_sums[d] * theirs;
      total = {best, total.sum * mine + other.sum * theirs};
    }
    const Row& row = work.rows[r];
    write_output(p, row.b, row.h, row.t, total_sums, total);
  }
}

}  // namespace moh::kernels::MOH_ISA
