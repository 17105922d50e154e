// Fused head-sparse attention, forward, on CPUs.
//
//   out[t,h] = gate * softmax(cap(scale * q K^T) + bias) V   for the tokens whose gate of head h is not zero
//
// Fused: gather of the rows that selected the head, scores, mask, cap, bias, online softmax, values, gate. Read once:
// query rows that are used, keys and values (packed per KV head, in fp32); written once: out and lse. No T x S memory.
// Blocks of 96 rows x 128 keys, three passes (scores, softmax, values) so that each operand block stays in L1. KV heads
// that few rows need take another way, head_attention_decode.cpp.
#include "moh/kernels/cpu/head_attention_decode.h"
#if defined(MOH_PAIRS)
  #include "moh/kernels/cpu/attend_pairs.h"
#else
  #include "moh/kernels/cpu/attend.h"
#endif

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int64_t kBlocksPerThread = 24;  // in a wave: what is left at its end is a few percent of it
constexpr int64_t kPackKeys = 256;        // keys that a thread packs at a time

// Skipped rows: zeros and -inf.
void clear_skipped(const HeadAttentionParams& p) {
  for_each_rows(p, [&](const Sequence& sequence, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const bool sees_none = visible_keys(p.variant, sequence, t) == 0;
      const int64_t row = (first_row_of(p, sequence) + t) * p.num_heads;
      for (int64_t h = 0; h < p.num_heads; ++h) {
        if (p.selection.gates[row + h] != 0 && !sees_none) continue;
        clear_row(query_row(p.out, p.dtype, sequence, t, h), p.out.stride[3], p.head_dim, p.dtype);
        p.lse[row + h] = -INFINITY;
      }
    }
  });
}

struct Block {
  int32_t kv, n, h, first_row;
};

// KV heads pass in waves: all threads pack the keys and values of a wave's heads, then share its blocks of rows, the
// most expensive ones first. A wave is as small as keeps the threads evenly busy: one KV head for one thread.
void forward_blocks(const HeadAttentionParams& p, const SequenceRows& rows) {
  const int64_t group = rows.group, all_kv = p.num_sequences * p.num_kv_heads;
  int64_t most_keys = 0, most_queries = 0;
  for (int64_t n = 0; n < p.num_sequences; ++n) {
    most_keys = max_of(most_keys, p.sequences[n].keys);
    most_queries = max_of(most_queries, p.sequences[n].queries);
  }
  const int64_t padded = round_up(p.head_dim, kWidth), capacity = round_up(most_keys, kPanel);
  const int64_t most_blocks = (most_queries + kBlockRows - 1) / kBlockRows;  // of one head
  const int64_t wave_size =
      p.parallel.num_threads == 1
          ? 1
          : max_of(1, min_of(all_kv, kBlocksPerThread * p.parallel.num_threads / max_of(1, group * most_blocks)));
  const int64_t of_keys = keys_size(p, capacity), of_values = values_size(capacity, padded);
  const Buffer<PackedNumber> keys(wave_size * of_keys), values(wave_size * of_values);
  const Buffer<Block> blocks(wave_size * group * most_blocks);
  const Buffer<int64_t> heads(wave_size), first_needed(wave_size), end_needed(wave_size);
  for (int64_t next_kv = 0; next_kv < all_kv;) {
    int64_t num_heads = 0;
    for (; next_kv < all_kv && num_heads < wave_size; ++next_kv) {
      if (rows.count(next_kv) <= kFewRows) continue;
      const Sequence& sequence = p.sequences[next_kv / p.num_kv_heads];
      int64_t first = sequence.keys, end = 0;
      for (int64_t i = next_kv * group; i < (next_kv + 1) * group; ++i) {
        const HeadRows& list = rows.rows[i];
        if (list.count == 0) continue;
        const int64_t first_row = first_row_of(p, sequence);
        first = min_of(first, first_visible_key(p.variant, sequence, list.rows[0] - first_row));
        end = max_of(end, visible_keys(p.variant, sequence, list.rows[list.count - 1] - first_row));
      }
      first_needed[num_heads] = first / kBlockKeys * kBlockKeys;
      end_needed[num_heads] = end;
      heads[num_heads++] = next_kv;
    }
    if (num_heads == 0) return;

    const int64_t parts = (capacity + kPackKeys - 1) / kPackKeys;
    for_each_item(p.parallel, num_heads * parts, [&](int64_t item) {
      const int64_t i = item / parts, part = item % parts * kPackKeys;
      const int64_t begin = max_of(part, first_needed[i]), end = min_of(part + kPackKeys, end_needed[i]);
      const Sequence& sequence = p.sequences[heads[i] / p.num_kv_heads];
      const int64_t kv_head = heads[i] % p.num_kv_heads;
      pack_keys_values(&keys[i * of_keys], &values[i * of_values], p, sequence, kv_head, begin, end, capacity, padded);
    });

    int64_t num_blocks = 0;
    for (int64_t block = most_blocks - 1; block >= 0; --block) {  // causal rows: the last ones see most
      for (int64_t i = 0; i < num_heads; ++i) {
        const int64_t n = heads[i] / p.num_kv_heads, first_head = heads[i] % p.num_kv_heads * group;
        for (int64_t h = first_head; h < first_head + group; ++h) {
          if (block * kBlockRows >= rows.of(n, h).count) continue;
          blocks[num_blocks++] = {static_cast<int32_t>(i), static_cast<int32_t>(n), static_cast<int32_t>(h),
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
        const HeadRows& list = rows.of(block.n, block.h);
        attend_block(p, p.sequences[block.n], block.h,
                     {list.rows + block.first_row, min_of(kBlockRows, list.count - block.first_row)},
                     &keys[block.kv * of_keys], &values[block.kv * of_values], capacity, padded, scratch);
      }
    });
  }
}

}  // namespace

void head_attention_forward(const HeadAttentionParams& p) {
  clear_skipped(p);
  const SequenceRows rows(p);
  forward_few(p, rows);
  forward_blocks(p, rows);
}

}  // namespace moh::kernels::MOH_ISA
