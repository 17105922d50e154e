"""Gradients from lse alone. With P = exp(score - lse), dP = <grad_out, value> and slope the derivative of the soft cap:

    grad_gates = sum_s P dP      dS = P gate (dP - grad_gates) = grad_bias
    grad_query = scale (slope dS) K      grad_key = scale (slope dS)^T Q      grad_value = gate P^T grad_out

Two launches without atomics, so that equal inputs give equal bits: over rows (grad_gates in a first pass over the keys,
grad_query and grad_bias in a second), then over keys. grad_gates comes from P and dP in fp32, not from the output, whose
few bits a small gate may have lost."""

import triton
import triton.language as tl

from .tile import LOG2E, capped, key_tile, product, ranges, sequence_of, visible


@triton.jit
def scores_of(products, soft_cap, scale, SOFT_CAP: tl.constexpr):
    """Scores in powers of 2 without the bias, and the slope of the cap."""
    if SOFT_CAP:
        scores, slope = capped(products * scale, soft_cap)
        return scores * LOG2E, slope
    else:
        return products * (scale * LOG2E), products


@triton.jit
def rows_pass(acc, grad_gate, q, g, logs, gate, start, stop, first, end, active, key_base, value_base, k_s, v_s, bias_rows, bias_s,
              grad_bias_rows, keys, head_dim, scale, soft_cap, SECOND: tl.constexpr, MASKED: tl.constexpr, SOFT_CAP: tl.constexpr,
              BIAS: tl.constexpr, GRAD_BIAS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """First pass: adds to grad_gate; second: to acc, with grad_gate known."""
    d = tl.arange(0, BLOCK_D)
    in_head = d < head_dim
    for tile in range(start, stop, BLOCK_N):
        s = tile + tl.arange(0, BLOCK_N)
        inside = s < keys
        if MASKED:
            mask = inside[:, None] & in_head[None, :]
        else:
            mask = (s[:, None] >= 0) & in_head[None, :]
        k_at = key_tile(key_base, tile, inside, key_base, 0, k_s, 1, False, BLOCK_N, BLOCK_D)
        v_at = key_tile(value_base, tile, inside, key_base, 0, v_s, 1, False, BLOCK_N, BLOCK_D)
        k, v = tl.load(k_at, mask=mask, other=0.0), tl.load(v_at, mask=mask, other=0.0)
        scores, slope = scores_of(product(q, tl.trans(k), None, PRECISION), soft_cap, scale, SOFT_CAP)
        if BIAS:
            scores += tl.load(bias_rows[:, None] + s[None, :] * bias_s, mask=inside[None, :], other=0.0).to(tl.float32) * LOG2E
        p = tl.exp2(scores - logs[:, None])
        if MASKED:
            p = tl.where((s[None, :] >= first[:, None]) & (s[None, :] < end[:, None]) & active[:, None], p, 0.0)
        grad_p = product(g, tl.trans(v), None, PRECISION)
        if SECOND:
            grad_scores = p * gate[:, None] * (grad_p - grad_gate[:, None])
            if GRAD_BIAS:
                tl.store(grad_bias_rows[:, None] + s[None, :], grad_scores, mask=inside[None, :] & (end >= 0)[:, None])
            if SOFT_CAP:
                grad_scores *= slope
            acc = product(grad_scores.to(k.dtype), k, acc, PRECISION)
        else:
            grad_gate += tl.sum(p * grad_p, 1)
    return acc, grad_gate


@triton.jit(do_not_specialize=["queries", "keys", "total_rows", "rows_per_batch", "window"])
def attention_backward_rows(query, key, value, bias, gates, lse, grad_out, grad_query, grad_gates, grad_bias, rows, counts,
                            sequences, q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h, g_b, g_t, g_h, dq_b, dq_t, dq_h, b_b, b_h,
                            b_t, b_s, db_b, db_h, db_t, queries, keys, total_rows, rows_per_batch, num_heads, group, head_dim,
                            window, scale, soft_cap, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr,
                            BIAS: tl.constexpr, GRAD_BIAS: tl.constexpr, SEQUENCES: tl.constexpr, PRECISION: tl.constexpr,
                            BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """One program: BLOCK_M rows of the list of one head of one sequence."""
    block, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, first_query, length, num_keys, first_key, _ = sequence_of(n, sequences, queries, keys, SEQUENCES)
    if block * BLOCK_M >= length:
        return
    count = tl.load(counts + n * num_heads + h)
    row = batch * rows_per_batch + first_query
    place = block * BLOCK_M + tl.arange(0, BLOCK_M)
    t = tl.load(rows + h.to(tl.int64) * total_rows + row + place, mask=place < length, other=0)
    d = tl.arange(0, BLOCK_D)
    in_head = d < head_dim
    active = place < count
    dq_at = grad_query + batch * dq_b + (first_query + t)[:, None] * dq_t + h.to(tl.int64) * dq_h + d[None, :]
    stat_at = (row + t) * num_heads + h
    written = (place < length)[:, None] & in_head[None, :]
    if (block * BLOCK_M >= count) & (not GRAD_BIAS):
        tl.store(dq_at, tl.zeros([BLOCK_M, BLOCK_D], grad_query.dtype.element_ty), mask=written)
        tl.store(grad_gates + stat_at, tl.zeros([BLOCK_M], tl.float32), mask=place < length)
        return

    readable = active[:, None] & in_head[None, :]
    q = tl.load(query + batch * q_b + (first_query + t)[:, None] * q_t + h.to(tl.int64) * q_h + d[None, :], mask=readable, other=0.0)
    g = tl.load(grad_out + batch * g_b + (first_query + t)[:, None] * g_t + h.to(tl.int64) * g_h + d[None, :], mask=readable,
                other=0.0)
    logs = tl.load(lse + stat_at, mask=active, other=float("-inf"))
    logs = tl.where(logs == float("-inf"), float("inf"), logs * LOG2E)  # rows that see nothing: P = 0
    gate = tl.load(gates + stat_at, mask=active, other=0.0)
    first, end = visible(t, length, num_keys, window, CAUSAL, WINDOW)
    start, full_start, full_end, stop = ranges(first, end, active, BLOCK_N)
    end = tl.where(place < length, end, -1)  # no row there
    kv = (h // group).to(tl.int64)
    key_base = key + kv * k_h + batch * k_b + first_key * k_s
    value_base = value + kv * v_h + batch * v_b + first_key * v_s
    bias_rows = bias + batch * b_b + h * b_h + (first_query + t) * b_t if BIAS else place
    grad_bias_rows = grad_bias + batch * db_b + h * db_h + (first_query + t) * db_t if GRAD_BIAS else place

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    grad_gate = tl.zeros([BLOCK_M], tl.float32)
    for second in tl.static_range(2):
        if (second == 1) & GRAD_BIAS:  # every element is written, also of keys that no row sees
            acc, grad_gate = rows_pass(acc, grad_gate, q, g, logs, gate, 0, num_keys, first, end, active, key_base, value_base,
                                       k_s, v_s, bias_rows, b_s, grad_bias_rows, num_keys, head_dim, scale, soft_cap, True, True,
                                       SOFT_CAP, BIAS, GRAD_BIAS, PRECISION, BLOCK_N, BLOCK_D)
        else:
            if WINDOW:
                acc, grad_gate = rows_pass(acc, grad_gate, q, g, logs, gate, start, full_start, first, end, active, key_base,
                                           value_base, k_s, v_s, bias_rows, b_s, grad_bias_rows, num_keys, head_dim, scale,
                                           soft_cap, second == 1, True, SOFT_CAP, BIAS, GRAD_BIAS, PRECISION, BLOCK_N, BLOCK_D)
            acc, grad_gate = rows_pass(acc, grad_gate, q, g, logs, gate, full_start, full_end, first, end, active, key_base,
                                       value_base, k_s, v_s, bias_rows, b_s, grad_bias_rows, num_keys, head_dim, scale, soft_cap,
                                       second == 1, False, SOFT_CAP, BIAS, GRAD_BIAS, PRECISION, BLOCK_N, BLOCK_D)
            acc, grad_gate = rows_pass(acc, grad_gate, q, g, logs, gate, full_end, stop, first, end, active, key_base,
                                       value_base, k_s, v_s, bias_rows, b_s, grad_bias_rows, num_keys, head_dim, scale, soft_cap,
                                       second == 1, True, SOFT_CAP, BIAS, GRAD_BIAS, PRECISION, BLOCK_N, BLOCK_D)
    acc = tl.where(active[:, None], acc * scale, 0.0)
    tl.store(dq_at, acc.to(grad_query.dtype.element_ty), mask=written)
    tl.store(grad_gates + stat_at, tl.where(active, grad_gate, 0.0), mask=place < length)


@triton.jit(do_not_specialize=["queries", "keys", "total_rows", "rows_per_batch", "window", "steps"])
def attention_backward_keys(query, key, value, bias, gates, lse, grad_out, grad_gates, grad_key, grad_value, rows, counts, before,
                            sequences, q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h, g_b, g_t, g_h, dk_b, dk_s, dk_h, dv_b, dv_s,
                            dv_h, b_b, b_h, b_t, b_s, queries, keys, total_rows, rows_per_batch, num_heads, group, head_dim,
                            window, scale, soft_cap, steps, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr,
                            BIAS: tl.constexpr, SEQUENCES: tl.constexpr, PRECISION: tl.constexpr, STEP: tl.constexpr,
                            BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """One program: BLOCK_N keys of one KV head of one sequence, over the lists of its query heads. Scores lie transposed."""
    block, kv, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, first_query, length, num_keys, first_key, _ = sequence_of(n, sequences, queries, keys, SEQUENCES)
    if block * BLOCK_N >= num_keys:
        return
    row = batch * rows_per_batch + first_query
    s = block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = s < num_keys
    d = tl.arange(0, BLOCK_D)
    in_head = d < head_dim
    own = inside[:, None] & in_head[None, :]
    s_at = (first_key + s)[:, None]
    k = tl.load(key + batch * k_b + s_at * k_s + kv.to(tl.int64) * k_h + d[None, :], mask=own, other=0.0)
    v = tl.load(value + batch * v_b + s_at * v_s + kv.to(tl.int64) * v_h + d[None, :], mask=own, other=0.0)
    acc_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for g_index in range(0, group):
        h = kv * group + g_index
        count = tl.load(counts + n * num_heads + h)
        begin, stop = tl.zeros([], tl.int32), count
        if CAUSAL:  # the list from the first row that sees these keys on, to a step
            steps_at = before + (n * num_heads + h) * steps
            step = tl.maximum(block * BLOCK_N + length - num_keys, 0) // STEP
            begin = tl.where(step * STEP < length, tl.load(steps_at + step, mask=step * STEP < length, other=0), count)
            if WINDOW:  # and to the last one
                step = tl.maximum((block + 1) * BLOCK_N + length - num_keys + window - 2, 0) // STEP + 1
                stop = tl.where(step * STEP < length, tl.load(steps_at + step, mask=step * STEP < length, other=0), count)
                begin, stop = tl.where(window < 0, 0, begin), tl.where(window < 0, count, stop)
        list_at = rows + h.to(tl.int64) * total_rows + row
        for start in range(begin, stop, BLOCK_M):
            place = start + tl.arange(0, BLOCK_M)
            active = place < stop
            t = tl.load(list_at + place, mask=active, other=0)
            readable = active[:, None] & in_head[None, :]
            q = tl.load(query + batch * q_b + (first_query + t)[:, None] * q_t + h.to(tl.int64) * q_h + d[None, :], mask=readable,
                        other=0.0)
            g = tl.load(grad_out + batch * g_b + (first_query + t)[:, None] * g_t + h.to(tl.int64) * g_h + d[None, :],
                        mask=readable, other=0.0)
            stat_at = (row + t) * num_heads + h
            logs = tl.load(lse + stat_at, mask=active, other=float("-inf"))
            logs = tl.where(logs == float("-inf"), float("inf"), logs * LOG2E)
            gate = tl.load(gates + stat_at, mask=active, other=0.0)
            grad_gate = tl.load(grad_gates + stat_at, mask=active, other=0.0)
            first, end = visible(t, length, num_keys, window, CAUSAL, WINDOW)
            scores, slope = scores_of(product(k, tl.trans(q), None, PRECISION), soft_cap, scale, SOFT_CAP)
            seen = inside[:, None] & active[None, :]
            if CAUSAL:
                seen = seen & (s[:, None] >= first[None, :]) & (s[:, None] < end[None, :])
            if BIAS:
                bias_at = bias + batch * b_b + h * b_h + (first_query + t)[None, :] * b_t + s[:, None] * b_s
                scores += tl.load(bias_at, mask=seen, other=0.0).to(tl.float32) * LOG2E
            p = tl.where(seen, tl.exp2(scores - logs[None, :]), 0.0) * gate[None, :]
            acc_v = product(p.to(g.dtype), g, acc_v, PRECISION)
            grad_p = product(v, tl.trans(g), None, PRECISION)
            grad_scores = p * (grad_p - grad_gate[None, :])
            if SOFT_CAP:
                grad_scores *= slope
            acc_k = product(grad_scores.to(q.dtype), q, acc_k, PRECISION)
    tl.store(grad_key + batch * dk_b + s_at * dk_s + kv.to(tl.int64) * dk_h + d[None, :], (acc_k * scale).to(grad_key.dtype.element_ty),
             mask=own)
    tl.store(grad_value + batch * dv_b + s_at * dv_s + kv.to(tl.int64) * dv_h + d[None, :], acc_v.to(grad_value.dtype.element_ty),
             mask=own)
