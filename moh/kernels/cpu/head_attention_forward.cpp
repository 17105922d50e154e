// Fused head-sparse attention, forward, on CPUs.
//
//   out[b,t,h] = gate * softmax(scale * q K^T + bias) V   for the tokens whose gate of head h is not zero
//
// Fused: gather of the rows that selected the head, scores, mask, bias, online softmax, values, gate. Read once: query
// rows that are used, keys and values (packed per KV head, in fp32); written once: out and lse. No T x S memory. Two
// ways:
//   blocks: 96 rows x 128 keys, three passes (scores, softmax, values) so that each operand block stays in L1;
//   few rows (decode): keys and values are read in place, once for all heads of the group, split over threads if need
//   be.
#include <math.h>

#include "moh/kernels/cpu/work.h"

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int64_t kFewRows = 8;         // of a KV head: packing would cost more than it saves
constexpr int64_t kMinSplitKeys = 256;  // keys of one part of a split decode
constexpr int64_t kItemsPerThread = 4;  // so that threads that finish early find work

struct State {  // of the online softmax of one row, base 2
  float max, sum;
};

// Softmax of one block of one row in place; rescales what was summed before. Returns the factor for the row's output.
float softmax_block(float* scores, int64_t count, int64_t padded, State& state) {
  for (int64_t s = count; s < padded; ++s) scores[s] = -INFINITY;
  Vec best = splat(state.max);
  for (int64_t s = 0; s < padded; s += kWidth) best = max_of(load(scores + s), best);
  const float new_max = max_in(best);
  const float base = new_max == -INFINITY ? 0.0F : new_max;
  Vec sum = Vec{};
  for (int64_t s = 0; s < padded; s += kWidth) {
    const Vec p = exp2_of(load(scores + s) - base);
    store(scores + s, p);
    sum += p;
  }
  const float factor = exp2_of(splat(state.max - base))[0];
  state.sum = state.sum * factor + sum_in(sum);
  state.max = new_max;
  return factor;
}

void write_output(const HeadAttentionParams& p, int64_t b, int64_t h, int64_t t, const float* sums,
                  const State& state) {
  const float gate = gate_of(p, b, t, h);
  const bool sees_none = state.max == -INFINITY;  // every visible key was hidden by the bias
  char* out = at(p.out, p.dtype, b, t, h);
  write_row(out, p.out.stride[3], sums, p.head_dim, p.dtype, sees_none ? 0.0F : gate / state.sum);
  p.lse[(b * p.num_heads + h) * p.queries + t] = sees_none ? -INFINITY : (state.max + log2f(state.sum)) * kLn2;
}

// Skipped rows: zeros and -inf.
void clear_skipped(const HeadAttentionParams& p) {
  for_each_item(p.parallel, p.batch * ((p.queries + 255) / 256), [&](int64_t item) {
    const int64_t per_batch = (p.queries + 255) / 256, b = item / per_batch, begin = item % per_batch * 256;
    for (int64_t t = begin; t < min_of(begin + 256, p.queries); ++t) {
      const bool sees_none = visible_keys(p, t) == 0;
      for (int64_t h = 0; h < p.num_heads; ++h) {
        if (gate_of(p, b, t, h) != 0 && !sees_none) continue;
        char* out = at(p.out, p.dtype, b, t, h);
        if (p.out.stride[3] == 1) {
          memset(out, 0, static_cast<size_t>(p.head_dim * size_of(p.dtype)));
        } else {
          for (int64_t d = 0; d < p.head_dim; ++d)
            memset(out + d * p.out.stride[3] * size_of(p.dtype), 0, size_of(p.dtype));
        }
        p.lse[(b * p.num_heads + h) * p.queries + t] = -INFINITY;
      }
    }
  });
}

void add_bias(const HeadAttentionParams& p, int64_t b, int64_t h, int64_t t, float* scores, int64_t key_begin,
              int64_t count) {
  for (int64_t s = 0; s < count; ++s) scores[s] += kLog2E * bias_at(p, b, h, t, key_begin + s);
}

// One block of rows of one head against all keys that it sees.
struct BlockScratch {
  Buffer<float> query, scores, sums;
  explicit BlockScratch(const HeadAttentionParams& p, int64_t padded)
      : query(kBlockRows * p.head_dim), scores(kBlockRows * kBlockKeys), sums(kBlockRows * padded) {}
};

void attend_block(const HeadAttentionParams& p, int64_t b, int64_t h, const int32_t* rows, int64_t count,
                  const float* keys, const float* values, int64_t capacity, int64_t padded,
                  const BlockScratch& scratch) {
  State state[kBlockRows];
  int64_t visible[kBlockRows] = {};
  const int64_t dim = p.head_dim;
  for (int64_t i = 0; i < count; ++i) {
    read_row(&scratch.query[i * dim], at(p.query, p.dtype, b, rows[i], h), p.query.stride[3], dim, dim, p.dtype,
             p.scale * kLog2E);
    visible[i] = visible_keys(p, rows[i]);
    state[i] = {-INFINITY, 0.0F};
  }
  const int64_t last = visible[count - 1];
  for (int64_t key_begin = 0; key_begin < last; key_begin += kBlockKeys) {
    const int64_t key_end = min_of(key_begin + kBlockKeys, last);
    block_scores(scratch.scores.data, scratch.query.data, dim, count, visible, keys, dim, key_begin, key_end);
    int64_t first = 0;  // rows before, in whole tiles, see none of these keys
    while (first < count && visible[min_of(first + kRows, count) - 1] <= key_begin) first += kRows;
    int64_t depth[kBlockRows / kRows];  // keys that each tile of rows multiplies with values
    for (int64_t tile = first; tile < count; tile += kRows) {
      const int64_t tile_end = min_of(tile + kRows, count);
      const int64_t tile_keys = min_of(visible[tile_end - 1], key_end) - key_begin;
      depth[tile / kRows] = tile_keys;
      for (int64_t i = tile; i < tile_end; ++i) {
        float* scores = &scratch.scores[i * kBlockKeys];
        const int64_t seen = max_of(min_of(visible[i], key_end) - key_begin, 0);
        if (p.bias.data != nullptr) add_bias(p, b, h, rows[i], scores, key_begin, seen);
        const float factor = softmax_block(scores, seen, round_up(tile_keys, kWidth), state[i]);
        if (key_begin == 0) continue;
        float* sums = &scratch.sums[i * padded];
        for (int64_t d = 0; d < padded; d += kWidth) store(sums + d, load(sums + d) * factor);
      }
    }
    for (int64_t panel = 0; panel * kPanel < padded; ++panel) {
      const int64_t width = panel_width(panel, padded);
      const float* block = values + panel * kPanel * capacity + key_begin * width;
      for (int64_t tile = first; tile < count; tile += kRows) {
        product(min_of(kRows, count - tile), width, depth[tile / kRows], &scratch.scores[tile * kBlockKeys], kBlockKeys,
                1, block, width, &scratch.sums[tile * padded + panel * kPanel], padded, key_begin > 0);
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) write_output(p, b, h, rows[i], &scratch.sums[i * padded], state[i]);
}

// Work in contiguous pieces of about equal cost: block `block` of head `bh`.
struct Block {
  int32_t bh, first_row;
};

void forward_blocks(const HeadAttentionParams& p, const RowLists& lists, const bool* is_few) {
  const int64_t group = p.num_heads / p.num_kv_heads, all = p.batch * p.num_heads;
  int64_t num_blocks = 0;
  for (int64_t bh = 0; bh < all; ++bh) {
    if (!is_few[bh / group]) num_blocks += (lists.count(bh) + kBlockRows - 1) / kBlockRows;
  }
  if (num_blocks == 0) return;
  Buffer<Block> blocks(num_blocks);
  Buffer<double> cost_before(num_blocks + 1);
  int64_t filled = 0;
  cost_before[0] = 0;
  for (int64_t bh = 0; bh < all; ++bh) {
    if (is_few[bh / group]) continue;
    for (int64_t row = 0; row < lists.count(bh); row += kBlockRows) {
      const int64_t end = min_of(row + kBlockRows, lists.count(bh));
      const auto seen = static_cast<double>(visible_keys(p, lists.begin(bh)[end - 1]));
      blocks[filled] = {static_cast<int32_t>(bh), static_cast<int32_t>(row)};
      cost_before[filled + 1] = cost_before[filled] + static_cast<double>(end - row) * seen;
      ++filled;
    }
  }
  const int64_t pieces = min_of(num_blocks, p.parallel.num_threads == 1 ? 1 : p.parallel.num_threads * kItemsPerThread);
  const int64_t padded = round_up(p.head_dim, kWidth), capacity = round_up(p.keys, kPanel);
  int64_t next_piece = 0;
  const int workers = static_cast<int>(min_of(p.parallel.num_threads, pieces));
  p.parallel(workers, [&](int) {
    const BlockScratch scratch(p, padded);
    const Buffer<float> keys(capacity * p.head_dim), values(capacity * padded), row(padded);
    int64_t packed_head = -1, packed_keys = 0;
    for (;;) {
      const int64_t piece = __atomic_fetch_add(&next_piece, 1, __ATOMIC_RELAXED);
      if (piece >= pieces) return;
      // Blocks whose cost begins inside this piece's share of the whole.
      const double share = cost_before[num_blocks] / static_cast<double>(pieces);
      const double low = share * static_cast<double>(piece);
      const double high =
          piece + 1 == pieces ? cost_before[num_blocks] * 2 + 1 : share * static_cast<double>(piece + 1);
      for (int64_t i = 0; i < num_blocks; ++i) {
        if (cost_before[i] < low || cost_before[i] >= high) continue;
        const int64_t bh = blocks[i].bh, b = bh / p.num_heads, h = bh % p.num_heads;
        const int64_t count = min_of(kBlockRows, lists.count(bh) - blocks[i].first_row);
        const int32_t* rows = lists.begin(bh) + blocks[i].first_row;
        const int64_t needed = visible_keys(p, rows[count - 1]), kv = bh / group;
        if (kv != packed_head || needed > packed_keys) {
          // All keys that any later block of this KV head inside this piece may need.
          int64_t most = needed;
          for (int64_t j = i; j < num_blocks && cost_before[j] < high && blocks[j].bh / group == kv; ++j) {
            const int64_t other = blocks[j].bh, end = min_of(blocks[j].first_row + kBlockRows, lists.count(other));
            most = max_of(most, visible_keys(p, lists.begin(other)[end - 1]));
          }
          pack_transposed(keys.data, p.key, p, b, h / group, most, row.data);
          pack_rows(values.data, p.value, p, b, h / group, most, capacity, padded, row.data);
          packed_head = kv;
          packed_keys = most;
        }
        attend_block(p, b, h, rows, count, keys.data, values.data, capacity, padded, scratch);
      }
    }
  });
}

// Decode: the few rows of a KV head, over one part of its keys.
struct Few {
  int64_t kv, key_begin, key_end, first_state;  // first_state: where its rows' partial results lie
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

void forward_few(const HeadAttentionParams& p, const RowLists& lists, const bool* is_few) {
  constexpr int64_t kStep = 64;  // keys at a time: K and V of a step stay in L1
  const int64_t group = p.num_heads / p.num_kv_heads, all_kv = p.batch * p.num_kv_heads;
  const int64_t padded = round_up(p.head_dim, kWidth);
  int64_t active = 0;
  for (int64_t kv = 0; kv < all_kv; ++kv)
    active += is_few[kv] && lists.first[(kv + 1) * group] > lists.first[kv * group];
  if (active == 0) return;
  const int64_t wanted = p.parallel.num_threads == 1 ? 1 : (2 * p.parallel.num_threads + active - 1) / active;
  const int64_t parts = max_of(1, min_of(wanted, p.keys / kMinSplitKeys));
  const int64_t part_keys = round_up((p.keys + parts - 1) / parts, kStep);
  Buffer<Few> items(active * parts);
  int64_t num_items = 0, num_states = 0;
  for (int64_t kv = 0; kv < all_kv; ++kv) {
    const int64_t rows = lists.first[(kv + 1) * group] - lists.first[kv * group];
    if (!is_few[kv] || rows == 0) continue;
    for (int64_t begin = 0; begin < p.keys; begin += part_keys) {
      items[num_items++] = {kv, begin, min_of(begin + part_keys, p.keys), num_states};
      num_states += rows;
    }
  }
  Buffer<State> states(num_states);
  Buffer<float> sums(num_states * padded);
  for_each_item(p.parallel, num_items, [&](int64_t index) {
    const Few& item = items[index];
    const int64_t b = item.kv / p.num_kv_heads, kv_head = item.kv % p.num_kv_heads;
    const int64_t rows = lists.first[(item.kv + 1) * group] - lists.first[item.kv * group];
    const Buffer<float> query(rows * padded), scratch(kStep * padded);
    int64_t visible[kFewRows];
    int32_t token[kFewRows], head[kFewRows];
    int64_t r = 0;
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      const int64_t bh = b * p.num_heads + h;
      for (int64_t i = 0; i < lists.count(bh); ++i, ++r) {
        token[r] = lists.begin(bh)[i];
        head[r] = static_cast<int32_t>(h);
        visible[r] = visible_keys(p, token[r]);
        read_row(&query[r * padded], at(p.query, p.dtype, b, token[r], h), p.query.stride[3], p.head_dim, padded,
                 p.dtype, p.scale * kLog2E);
        states[item.first_state + r] = {-INFINITY, 0.0F};
        memset(&sums[(item.first_state + r) * padded], 0, static_cast<size_t>(padded) * sizeof(float));
      }
    }
    float scores[kFewRows * kStep];
    for (int64_t s = item.key_begin; s < item.key_end; s += kStep) {
      const int64_t count = min_of(kStep, item.key_end - s);
      int64_t row_size;
      const float* keys = plain_rows(p.key, p, b, s, kv_head, count, padded, scratch.data, &row_size);
      for (int64_t i = 0; i < count; ++i) {
        for (r = 0; r < rows; ++r) {
          Vec dot = Vec{};
          for (int64_t d = 0; d < padded; d += kWidth)
            dot += load(&query[r * padded + d]) * load(keys + i * row_size + d);
          scores[r * kStep + i] = sum_in(dot);
        }
      }
      const float* values = plain_rows(p.value, p, b, s, kv_head, count, padded, scratch.data, &row_size);
      for (r = 0; r < rows; ++r) {
        const int64_t seen = max_of(0, min_of(count, visible[r] - s));
        if (seen == 0) continue;
        float* row_scores = scores + r * kStep;
        float* row_sums = &sums[(item.first_state + r) * padded];
        if (p.bias.data != nullptr) add_bias(p, b, head[r], token[r], row_scores, s, seen);
        const float factor = softmax_block(row_scores, seen, kStep, states[item.first_state + r]);
        for (int64_t d = 0; d < padded; d += kWidth) store(row_sums + d, load(row_sums + d) * factor);
        for (int64_t panel = 0; panel * kPanel < padded; ++panel) {
          product(1, panel_width(panel, padded), seen, row_scores, 0, 1, values + panel * kPanel, row_size,
                  row_sums + panel * kPanel, 0, true);
        }
      }
    }
  });
  // Parts of one row are put together in their order.
  for (int64_t index = 0; index < num_items; index += (p.keys + part_keys - 1) / part_keys) {
    const Few& item = items[index];
    const int64_t b = item.kv / p.num_kv_heads, kv_head = item.kv % p.num_kv_heads;
    const int64_t rows = lists.first[(item.kv + 1) * group] - lists.first[item.kv * group];
    int64_t r = 0;
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      const int64_t bh = b * p.num_heads + h;
      for (int64_t i = 0; i < lists.count(bh); ++i, ++r) {
        State total = states[item.first_state + r];
        float* total_sums = &sums[(item.first_state + r) * padded];
        for (int64_t part = 1; part < (p.keys + part_keys - 1) / part_keys; ++part) {
          const State other = states[item.first_state + part * rows + r];
          const float* other_sums = &sums[(item.first_state + part * rows + r) * padded];
          if (other.max == -INFINITY) continue;
          const float best = total.max > other.max ? total.max : other.max;
          const float mine = exp2f(total.max - best), theirs = exp2f(other.max - best);
          for (int64_t d = 0; d < padded; ++d) total_sums[d] = total_sums[d] * mine + other_sums[d] * theirs;
          total = {best, total.sum * mine + other.sum * theirs};
        }
        write_output(p, b, h, lists.begin(bh)[i], total_sums, total);
      }
    }
  }
}

}  // namespace

void head_attention_forward(const HeadAttentionParams& p) {
  clear_skipped(p);
  const RowLists lists(p);
  const int64_t group = p.num_heads / p.num_kv_heads, all_kv = p.batch * p.num_kv_heads;
  const Buffer<bool> is_few(all_kv);
  for (int64_t kv = 0; kv < all_kv; ++kv) {
    is_few[kv] = lists.first[(kv + 1) * group] - lists.first[kv * group] <= kFewRows;
  }
  forward_few(p, lists, is_few.data);
  forward_blocks(p, lists, is_few.data);
}

}  // namespace moh::kernels::MOH_ISA
