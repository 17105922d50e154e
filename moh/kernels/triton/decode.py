"""Head attention of sequences of a few rows, as in decoding: the keys of a sequence are split into parts of SPLIT keys, one
program each, which serves all query heads of a KV head; a second launch joins the parts. A part's place depends on its
sequence alone, so results do not depend on the rest of the call.

    parts  fp32 [N, parts, rows, H, D]     stats  fp32 [N, parts, rows, H, 2]: maximum and sum, in powers of 2

A part that no selected head needs, or that lies beyond the keys, is neither computed nor read."""

import triton
import triton.language as tl

from .forward import attend
from .tile import LN2, LOG2E, sequence_of, visible


@triton.jit(do_not_specialize=["queries", "keys", "rows_per_batch", "page_size", "window", "few"])
def attention_decode(query, key, value, bias, gates, parts, stats, sequences, pages,
                     q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h, b_b, b_h, b_t, b_s,
                     queries, keys, rows_per_batch, num_heads, group, head_dim, page_size, window, scale, soft_cap, few,
                     CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, BIAS: tl.constexpr,
                     SEQUENCES: tl.constexpr, PAGED: tl.constexpr, PRECISION: tl.constexpr, SPLIT: tl.constexpr,
                     BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of a tile: query t and head g of the group at t * group + g."""
    blocks_m = tl.cdiv(few * group, BLOCK_M)
    part, kv, n = tl.program_id(0), tl.program_id(1) // blocks_m, tl.program_id(2)
    block = tl.program_id(1) % blocks_m
    batch, first_query, length, num_keys, first_key, table = sequence_of(n, sequences, queries, keys, SEQUENCES)
    if (length > few) | (part * SPLIT >= num_keys) | (block * BLOCK_M >= length * group):
        return
    place = block * BLOCK_M + tl.arange(0, BLOCK_M)
    t, h = place // group, kv * group + place % group
    first, end = visible(t, length, num_keys, window, CAUSAL, WINDOW)
    gate = tl.load(gates + (batch * rows_per_batch + first_query + t) * num_heads + h, mask=t < length, other=0.0)
    active = (gate != 0) & (first < (part + 1) * SPLIT) & (end > part * SPLIT)
    if tl.sum(active.to(tl.int32), 0) == 0:
        return
    d = tl.arange(0, BLOCK_D)
    in_head = d < head_dim
    q_at = query + batch * q_b + (first_query + t)[:, None] * q_t + h.to(tl.int64)[:, None] * q_h + d[None, :]
    q = tl.load(q_at, mask=active[:, None] & in_head[None, :], other=0.0)
    key_base, value_base = key + kv.to(tl.int64) * k_h, value + kv.to(tl.int64) * v_h
    if not PAGED:
        key_base += batch * k_b + first_key * k_s
        value_base += batch * v_b + first_key * v_s
    bias_rows = bias + batch * b_b + h * b_h + (first_query + tl.where(active, t, 0)) * b_t if BIAS else place
    lowest = tl.min(tl.where(active, first, 2147483647), 0) // BLOCK_N * BLOCK_N
    start, stop = tl.maximum(part * SPLIT, lowest), tl.minimum((part + 1) * SPLIT, tl.max(tl.where(active, end, 0), 0))

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc, maximum, total = attend(acc, maximum, total, q, start, stop, first, end, key_base, value_base, pages + table, k_b, k_s,
                                 v_b, v_s, bias_rows, b_s, num_keys, head_dim, page_size, scale, soft_cap, True, PAGED, SOFT_CAP,
                                 BIAS, PRECISION, BLOCK_N, BLOCK_D)
    at = ((n * tl.num_programs(0) + part).to(tl.int64) * few + t) * num_heads + h
    tl.store(parts + at[:, None] * head_dim + d[None, :], acc, mask=active[:, None] & in_head[None, :])
    tl.store(stats + at * 2, maximum, mask=active)
    tl.store(stats + at * 2 + 1, total, mask=active)


@triton.jit(do_not_specialize=["queries", "keys", "rows_per_batch", "window", "few", "num_parts", "sinks"])
def attention_join(parts, stats, gates, sink, out, lse, sequences, o_b, o_t, o_h, queries, keys, rows_per_batch, num_heads,
                   head_dim, window, few, num_parts, sinks, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SEQUENCES: tl.constexpr,
                   SPLIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    """One program: one row and head."""
    t, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, first_query, length, num_keys, _, _ = sequence_of(n, sequences, queries, keys, SEQUENCES)
    if (length > few) | (t >= length):
        return
    stat_at = (batch * rows_per_batch + first_query + t) * num_heads + h
    gate = tl.load(gates + stat_at)
    first, end = visible(t, length, num_keys, window, CAUSAL, WINDOW)
    d = tl.arange(0, BLOCK_D)
    in_head = d < head_dim
    acc = tl.zeros([BLOCK_D], tl.float32)
    maximum = tl.max(tl.full([BLOCK_P], float("-inf"), tl.float32), 0)
    total = tl.sum(tl.zeros([BLOCK_P], tl.float32), 0)
    stop = tl.where((gate != 0) & (end > first), tl.cdiv(end, SPLIT), 0)
    for start in range(first // SPLIT, stop, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        at = ((n * num_parts + part).to(tl.int64) * few + t) * num_heads + h
        maxima = tl.load(stats + at * 2, mask=part < stop, other=float("-inf"))
        sums = tl.load(stats + at * 2 + 1, mask=part < stop, other=0.0)
        higher = tl.maximum(maximum, tl.max(maxima, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.where(sums == 0, 0.0, tl.exp2(maxima - base))
        values = tl.load(parts + at[:, None] * head_dim + d[None, :], mask=(part < stop)[:, None] & in_head[None, :], other=0.0)
        shrink = tl.exp2(maximum - base)
        acc = acc * shrink + tl.sum(weight[:, None] * values, 0)
        total = total * shrink + tl.sum(weight * sums, 0)
        maximum = higher
    extra = tl.load(sink + h, mask=h < sinks, other=float("-inf")) * LOG2E
    higher = tl.maximum(maximum, extra)
    base = tl.where(higher == float("-inf"), 0.0, higher)
    shrink = tl.exp2(maximum - base)
    acc *= shrink
    total = total * shrink + tl.where((gate != 0) & (end > first), tl.exp2(extra - base), 0.0)
    maximum = higher
    none = total == 0
    divisor = tl.where(none, 1.0, total)
    result = tl.where(none, 0.0, acc * (gate / divisor))
    tl.store(out + batch * o_b + (first_query + t) * o_t + h.to(tl.int64) * o_h + d, result.to(out.dtype.element_ty), mask=in_head)
    tl.store(lse + stat_at, tl.where(none, float("-inf"), (maximum + tl.log2(divisor)) * LN2))
