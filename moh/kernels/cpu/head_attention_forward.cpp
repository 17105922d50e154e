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

constexpr int64_t kBlocksPerThread = 24;  // in a wave: what is left at its end is a few percent of it
constexpr int64_t kPackKeys = 256;        // keys that a thread packs at a time

// Skipped rows: zeros and -inf.
void clear_skipped(const HeadAttentionParams& p) {
  for_each_item(p.parallel, p.batch * ((p.queries + 255) / 256), [&](int64_t item) {
    const int64_t per_batch = (p.queries + 255) / 256, b = item / per_batch, begin = item % per_batch * 256;
    for (int64_t t = begin; t < min_of(begin + 256, p.queries); ++t) {
      const bool sees_none = visible_keys(p, t) == 0;
      for (int64_t h = 0; h < p.num_heads; ++h) {
        if (gate_of(p, b, t, h) != 0 && !sees_none) continue;
        clear_row(at(p.out, p.dtype, b, t, h), p.out.stride[3], p.head_dim, p.dtype);
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

struct Block {
  int32_t kv, bh, first_row;
};

// KV heads pass in waves: all threads pack the keys and values of a wave's heads, then share its blocks of rows, the
// most expensive ones first. A wave is as small as keeps the threads evenly busy: one KV head for one thread.
void forward_blocks(const HeadAttentionParams& p, const RowLists& lists) {
  const int64_t group = p.num_heads / p.num_kv_heads, all_kv = p.batch * p.num_kv_heads;
  const int64_t padded = round_up(p.head_dim, kWidth), capacity = round_up(p.keys, kPanel);
  const int64_t most_blocks = (p.queries + kBlockRows - 1) / kBlockRows;  // of one head
  const int64_t wave_size =
      p.parallel.num_threads == 1
          ? 1
          : max_of(1, min_of(all_kv, kBlocksPerThread * p.parallel.num_threads / max_of(1, group * most_blocks)));
  const Buffer<float> keys(wave_size * capacity * p.head_dim), values(wave_size * capacity * padded);
  const Buffer<Block> blocks(wave_size * group * most_blocks);
  const Buffer<int64_t> heads(wave_size), needed(wave_size);
  for (int64_t next_kv = 0; next_kv < all_kv;) {
    int64_t num_heads = 0;
    for (; next_kv < all_kv && num_heads < wave_size; ++next_kv) {
      const int64_t rows = lists.first[(next_kv + 1) * group] - lists.first[next_kv * group];
      if (rows == 0 || has_few_rows(lists, next_kv, group)) continue;
      needed[num_heads] = 0;
      for (int64_t bh = next_kv * group; bh < (next_kv + 1) * group; ++bh) {
        if (lists.count(bh) == 0) continue;
        needed[num_heads] = max_of(needed[num_heads], visible_keys(p, lists.begin(bh)[lists.count(bh) - 1]));
      }
      heads[num_heads++] = next_kv;
    }
    if (num_heads == 0) return;

    const int64_t parts = (capacity + kPackKeys - 1) / kPackKeys;
    for_each_item(p.parallel, num_heads * parts, [&](int64_t item) {
      const int64_t i = item / parts, begin = item % parts * kPackKeys, end = min_of(begin + kPackKeys, needed[i]);
      const int64_t b = heads[i] / p.num_kv_heads, kv_head = heads[i] % p.num_kv_heads;
      pack_transposed(&keys[i * capacity * p.head_dim], p.key, p, b, kv_head, begin, end);
      pack_rows(&values[i * capacity * padded], p.value, p, b, kv_head, begin, end, capacity, padded);
    });

    int64_t num_blocks = 0;
    for (int64_t block = most_blocks - 1; block >= 0; --block) {  // causal rows: the last ones see most
      for (int64_t i = 0; i < num_heads; ++i) {
        for (int64_t bh = heads[i] * group; bh < (heads[i] + 1) * group; ++bh) {
          if (block * kBlockRows >= lists.count(bh)) continue;
          blocks[num_blocks++] = {static_cast<int32_t>(i), static_cast<int32_t>(bh),
                                  static_cast<int32_t>(block * kBlockRows)};
        }
      }
    }
    int64_t next = 0;
    p.parallel(static_cast<int>(min_of(p.parallel.num_threads, num_blocks)), [&](int) {
      const BlockScratch scratch(p, padded);
      for (;;) {
        const int64_t item = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        if (item >= num_blocks) return;
        const Block block = blocks[item];
        attend_block(p, block.bh / p.num_heads, block.bh % p.num_heads, lists.begin(block.bh) + block.first_row,
                     min_of(kBlockRows, lists.count(block.bh) - block.first_row),
                     &keys[block.kv * capacity * p.head_dim], &values[block.kv * capacity * padded], capacity, padded,
                     scratch);
      }
    });
  }
}

}  // namespace

void head_attention_forward(const HeadAttentionParams& p) {
  clear_skipped(p);
  const RowLists lists = row_lists(p);
  forward_few(p, lists);
  forward_blocks(p, lists);
}

}  // namespace moh::kernels::MOH_ISA
