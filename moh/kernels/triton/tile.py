"""What the attention kernels share: a sequence of the call, the keys that its rows see, addresses of keys, scores.

A call has N sequences. Where all of them are equally long and sequence n is batch n, that is all there is to know
(SEQUENCES false); else `sequences` holds for each

    batch, first query, queries, keys, first key, place of its first page in `pages`         int64 [N, 6]

With PAGED key s is (pages[s / page_size], s % page_size) of key and value, else (batch, first key + s). A query t of T
stands at position t + S - T of S keys and, with CAUSAL, sees the keys up to there, with WINDOW only the last `window` of
these. A negative window means all keys: what is compiled with CAUSAL and WINDOW serves every mask."""

import os

import triton
import triton.language as tl

INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """a b + acc. Triton's interpreter does not know how to multiply bf16."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def sequence_of(n, sequences, queries, keys, SEQUENCES: tl.constexpr):
    """batch (64 bits), first query, queries, keys, first key, place of the first page."""
    if SEQUENCES:
        at = sequences + n * 6
        return (tl.load(at), tl.load(at + 1), tl.load(at + 2).to(tl.int32), tl.load(at + 3).to(tl.int32), tl.load(at + 4),
                tl.load(at + 5))
    else:
        zero = n.to(tl.int64) * 0
        return n.to(tl.int64), zero, queries, keys, zero, zero


@triton.jit
def visible(t, queries, keys, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """First key that query t sees, and the one behind its last."""
    first, end = t * 0, t * 0 + keys
    if CAUSAL:
        behind = t + keys - queries + 1
        if WINDOW:
            far = 1 << 30
            first = tl.minimum(tl.maximum(behind - tl.where(window < 0, far, window), 0), keys)
            behind += tl.where(window < 0, far, 0)
        end = tl.minimum(tl.maximum(behind, 0), keys)
    return first, end


@triton.jit
def key_tile(base, tile, inside, table, stride_page, stride_key, page_size, PAGED: tl.constexpr, BLOCK_N: tl.constexpr,
             BLOCK_D: tl.constexpr):
    """Addresses of the keys (or values) tile .. tile + BLOCK_N of a sequence. Where they lie side by side, one address of 64
    bits and offsets of 32: half the registers."""
    lane, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    if PAGED:
        s = tile + lane
        page = tl.load(table + s // page_size, mask=inside, other=0).to(tl.int64)
        return base + (page * stride_page + (s % page_size).to(tl.int64) * stride_key)[:, None] + d[None, :]
    else:
        start = tl.zeros([], tl.int64) + tile
        return base + start * stride_key + ((lane.to(tl.int64) * stride_key).to(tl.int32)[:, None] + d[None, :])


@triton.jit
def capped(scores, soft_cap):
    """soft_cap * tanh(scores / soft_cap) and the derivative of that."""
    tanh = 2 * tl.sigmoid(2 * scores / soft_cap) - 1
    return soft_cap * tanh, 1 - tanh * tanh


@triton.jit
def ranges(first, end, active, BLOCK_N: tl.constexpr):
    """Tiles of keys that the active rows see: masked in [start, full_start), seen whole by all of them in [full_start,
    full_end), masked in [full_end, stop). All four are multiples of BLOCK_N."""
    beyond = 2147483647 - BLOCK_N
    start = tl.min(tl.where(active, first, beyond), 0) // BLOCK_N * BLOCK_N
    stop = (tl.max(tl.where(active, end, 0), 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    full_start = (tl.max(tl.where(active, first, 0), 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    full_end = tl.min(tl.where(active, end, beyond), 0) // BLOCK_N * BLOCK_N
    full_start = tl.minimum(tl.maximum(full_start, start), stop)
    full_end = tl.minimum(tl.maximum(full_end, full_start), stop)
    return start, full_start, full_end, stop
