"""Head attention of blocks of rows: gathered by the lists of lists.py, keys and values in tiles, softmax as it goes.

    out[t,h,:] = gate[t,h] * softmax_s(cap(scale * <query[t,h,:], key[s,h/G,:]>) + bias[h,t,s]) value[s,h/G,:]

One program: BLOCK_M rows of the list of one head of one sequence. Programs behind the list's selected rows write zeros."""

import triton
import triton.language as tl

from .tile import LN2, LOG2E, capped, key_tile, product, ranges, sequence_of, visible


@triton.jit
def attend(acc, maximum, total, q, start, stop, first, end, key_base, value_base, table, k_page, k_s, v_page, v_s, bias_rows,
           bias_s, keys, head_dim, page_size, scale, soft_cap, MASKED: tl.constexpr, PAGED: tl.constexpr,
           SOFT_CAP: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """The tiles [start, stop) of keys into acc (not yet divided by total), maximum and total; in powers of 2."""
    d = tl.arange(0, BLOCK_D)
    in_head = d < head_dim
    for tile in range(start, stop, BLOCK_N):
        s = tile + tl.arange(0, BLOCK_N)
        inside = s < keys
        k_at = key_tile(key_base, tile, inside, table, k_page, k_s, page_size, PAGED, BLOCK_N, BLOCK_D)
        v_at = key_tile(value_base, tile, inside, table, v_page, v_s, page_size, PAGED, BLOCK_N, BLOCK_D)
        if MASKED:
            mask = inside[:, None] & in_head[None, :]
        else:
            mask = (s[:, None] >= 0) & in_head[None, :]
        k = tl.load(k_at, mask=mask, other=0.0)
        scores = product(q, tl.trans(k), None, PRECISION)
        if SOFT_CAP:
            scores = capped(scores * scale, soft_cap)[0] * LOG2E
        else:
            scores *= scale * LOG2E
        if BIAS:
            scores += tl.load(bias_rows[:, None] + s[None, :] * bias_s, mask=inside[None, :], other=0.0).to(tl.float32) * LOG2E
        if MASKED:
            scores = tl.where((s[None, :] >= first[:, None]) & (s[None, :] < end[:, None]), scores, float("-inf"))
        higher = tl.maximum(maximum, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(maximum - base)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_at, mask=mask, other=0.0)
        acc = product(p.to(v.dtype), v, acc * shrink[:, None], PRECISION)
        maximum = higher
    return acc, maximum, total


@triton.jit(do_not_specialize=["queries", "keys", "total_rows", "rows_per_batch", "page_size", "window", "few", "sinks"])
def attention_forward(query, key, value, bias, gates, sink, out, lse, rows, counts, sequences, pages,
                      q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h, o_b, o_t, o_h, b_b, b_h, b_t, b_s,
                      queries, keys, total_rows, rows_per_batch, num_heads, group, head_dim, page_size, window, scale, soft_cap,
                      few, sinks, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, BIAS: tl.constexpr,
                      SEQUENCES: tl.constexpr, PAGED: tl.constexpr, PRECISION: tl.constexpr,
                      BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Sequences of up to `few` queries are left to decode.py. sinks: heads that have one, all or none."""
    block, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, first_query, length, num_keys, first_key, table = sequence_of(n, sequences, queries, keys, SEQUENCES)
    if (block * BLOCK_M >= length) | (length <= few):
        return
    count = tl.load(counts + n * num_heads + h)
    row = batch * rows_per_batch + first_query
    place = block * BLOCK_M + tl.arange(0, BLOCK_M)
    t = tl.load(rows + h.to(tl.int64) * total_rows + row + place, mask=place < length, other=0)
    d = tl.arange(0, BLOCK_D)
    in_head = d < head_dim
    o_at = out + batch * o_b + (first_query + t)[:, None] * o_t + h.to(tl.int64) * o_h + d[None, :]
    stat_at = (row + t) * num_heads + h
    written = (place < length)[:, None] & in_head[None, :]
    if block * BLOCK_M >= count:
        tl.store(o_at, tl.zeros([BLOCK_M, BLOCK_D], out.dtype.element_ty), mask=written)
        tl.store(lse + stat_at, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=place < length)
        return

    active = place < count
    q_at = query + batch * q_b + (first_query + t)[:, None] * q_t + h.to(tl.int64) * q_h + d[None, :]
    q = tl.load(q_at, mask=active[:, None] & in_head[None, :], other=0.0)
    first, end = visible(t, length, num_keys, window, CAUSAL, WINDOW)
    start, full_start, full_end, stop = ranges(first, end, active, BLOCK_N)
    kv = (h // group).to(tl.int64)
    key_base, value_base = key + kv * k_h, value + kv * v_h
    if not PAGED:
        key_base += batch * k_b + first_key * k_s
        value_base += batch * v_b + first_key * v_s
    bias_rows = bias + batch * b_b + h * b_h + (first_query + t) * b_t if BIAS else place

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if WINDOW:
        acc, maximum, total = attend(acc, maximum, total, q, start, full_start, first, end, key_base, value_base, pages + table,
                                     k_b, k_s, v_b, v_s, bias_rows, b_s, num_keys, head_dim, page_size, scale, soft_cap, True,
                                     PAGED, SOFT_CAP, BIAS, PRECISION, BLOCK_N, BLOCK_D)
    acc, maximum, total = attend(acc, maximum, total, q, full_start, full_end, first, end, key_base, value_base, pages + table,
                                 k_b, k_s, v_b, v_s, bias_rows, b_s, num_keys, head_dim, page_size, scale, soft_cap, False,
                                 PAGED, SOFT_CAP, BIAS, PRECISION, BLOCK_N, BLOCK_D)
    acc, maximum, total = attend(acc, maximum, total, q, full_end, stop, first, end, key_base, value_base, pages + table,
                                 k_b, k_s, v_b, v_s, bias_rows, b_s, num_keys, head_dim, page_size, scale, soft_cap, True,
                                 PAGED, SOFT_CAP, BIAS, PRECISION, BLOCK_N, BLOCK_D)

    extra = tl.load(sink + h, mask=h < sinks, other=float("-inf")) * LOG2E
    higher = tl.maximum(maximum, extra)
    base = tl.where(higher == float("-inf"), 0.0, higher)
    shrink = tl.exp2(maximum - base)
    acc *= shrink[:, None]
    total = total * shrink + tl.where(end > first, tl.exp2(extra - base), 0.0)
    maximum = higher
    gate = tl.load(gates + stat_at, mask=active, other=0.0)
    factor = tl.where(active & (total != 0), gate / tl.where(total == 0, 1.0, total), 0.0)
    result = tl.where(active[:, None], acc * factor[:, None], 0.0)  # NaN may stand in rows that are not active
    tl.store(o_at, result.to(out.dtype.element_ty), mask=written)
    logs = tl.where(active & (total != 0), (maximum + tl.log2(tl.where(total == 0, 1.0, total))) * LN2, float("-inf"))
    tl.store(lse + stat_at, logs, mask=place < length)
