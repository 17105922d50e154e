// Fused head-sparse attention, forward, on CPUs.
//
//   out[b,t,h] = gate * softmax(scale * q K^T + bias) V   for the tokens whose gate of head h is not zero
//
// Fused: gather of the rows that selected the head, scores, mask, bias, online softmax, values, gate. Read once: query
// rows that are used, keys and values (packed per KV head, in fp32); written once: out and lse. No T x S memory. Blocks
// of 96 rows x 128 keys, three passes (scores, softmax, values) so that each operand block stays in L1. KV heads that
// few rows need take another way, head_attention_decode.cpp.
#include "moh/kernels/cpu/head_attention_decode.h"
#include "moh/kernels/cpu/softmax.h"

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int64_t kItemsPerThread = 4;  // so that threads that finish early find work

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
    const int64_t first = first_row_seeing(visible, count, key_begin);
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
        if (key_begin > 0) rescale(&scratch.sums[i * padded], padded, factor);
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

void forward_blocks(const HeadAttentionParams& p, const RowLists& lists) {
  const int64_t group = p.num_heads / p.num_kv_heads, all = p.batch * p.num_heads;
  int64_t num_blocks = 0;
  for (int64_t bh = 0; bh < all; ++bh) {
    if (!has_few_rows(lists, bh / group, group)) num_blocks += (lists.count(bh) + kBlockRows - 1) / kBlockRows;
  }
  if (num_blocks == 0) return;
  Buffer<Block> blocks(num_blocks);
  Buffer<double> cost_before(num_blocks + 1);
  int64_t filled = 0;
  cost_before[0] = 0;
  for (int64_t bh = 0; bh < all; ++bh) {
    if (has_few_rows(lists, bh / group, group)) continue;
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

}  // namespace

void head_attention_forward(const HeadAttentionParams& p) {
  clear_skipped(p);
  const RowLists lists = row_lists(p);
  forward_few(p, lists);
  forward_blocks(p, lists);
}

}  // namespace moh::kernels::MOH_ISA
