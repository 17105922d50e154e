"""Products between hidden states and heads that skip the heads a row did not select (moh/kernels/projection.h):

    project_heads    heads[r,h,d]  = sum_c x[r,c] weight[h,d,c] + bias[h,d]     where the row uses the head, else 0
    combine_heads    x[r,c]        = sum_h sum_d heads[r,h,d] weight[h,d,c] + bias[c]     over the heads that the row uses
    weight_gradient  weight[h,d,c] = sum_r heads[r,h,d] x[r,c]     over the rows that use the head

The first and the last gather the rows of a head by its list (lists.py, all rows as one sequence), so tiles are full at any
share of heads. combine_heads cannot: a row's sum runs over heads of its own, while a tile's runs over the same ones for all
its rows. It leaves out the heads that no row of a tile uses: much of the work where rows are few (decoding, where reading
the weights is what takes the time), next to nothing in large tiles, where it costs what the dense product costs."""

import triton
import triton.language as tl

from .tile import product


@triton.jit(do_not_specialize=["num_rows", "biased"])
def project_heads(x, weight, bias, rows, counts, out, x_r, w_h, w_d, w_c, o_r, o_h, num_rows, width, head_dim, biased,
                  PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
                  BLOCK_D: tl.constexpr):
    """One program: BLOCK_M rows of the list of one head, all of the head."""
    block, h = tl.program_id(0), tl.program_id(1)
    count = tl.load(counts + h)
    place = block * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.load(rows + h.to(tl.int64) * num_rows + place, mask=place < num_rows, other=0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    in_head = d < head_dim
    o_at = out + r[:, None] * o_r + h.to(tl.int64) * o_h + d[None, :]
    written = (place < num_rows)[:, None] & in_head[None, :]
    if block * BLOCK_M >= count:
        tl.store(o_at, tl.zeros([BLOCK_M, BLOCK_D], out.dtype.element_ty), mask=written)
        return
    active = place < count
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, width, BLOCK_K):
        c = start + tl.arange(0, BLOCK_K)
        a = tl.load(x + r[:, None] * x_r + c[None, :], mask=active[:, None] & (c < width)[None, :], other=0.0)
        w_at = weight + h.to(tl.int64) * w_h + c.to(tl.int64)[:, None] * w_c + d.to(tl.int64)[None, :] * w_d
        w = tl.load(w_at, mask=(c < width)[:, None] & in_head[None, :], other=0.0)
        acc = product(a, w, acc, PRECISION)
    acc += tl.load(bias + h * head_dim + d, mask=d < biased * head_dim, other=0.0).to(tl.float32)[None, :]
    tl.store(o_at, tl.where(active[:, None], acc, 0.0).to(out.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=["num_rows", "biased"])
def combine_heads(heads, weight, bias, gates, out, a_r, a_h, w_h, w_d, w_c, o_r, num_rows, num_heads, width, head_dim,
                  biased, SKIP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
                  BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """One program: BLOCK_M rows, BLOCK_N columns of the result, one head after the other. SKIP: with a look whether any row
    uses the head, which a loop of large tiles is better without."""
    r = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    c = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    in_head = d < head_dim
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for h in range(0, num_heads):
        active = tl.load(gates + r * num_heads + h, mask=r < num_rows, other=0.0) != 0
        a_at = heads + r[:, None] * a_r + h * a_h + d[None, :]
        w_at = weight + h * w_h + d.to(tl.int64)[:, None] * w_d + c.to(tl.int64)[None, :] * w_c
        if SKIP:
            if tl.sum(active.to(tl.int32), 0) > 0:
                a = tl.load(a_at, mask=active[:, None] & in_head[None, :], other=0.0)
                w = tl.load(w_at, mask=in_head[:, None] & (c < width)[None, :], other=0.0)
                acc = product(a, w, acc, PRECISION)
        else:
            a = tl.load(a_at, mask=active[:, None] & in_head[None, :], other=0.0)
            w = tl.load(w_at, mask=in_head[:, None] & (c < width)[None, :], other=0.0)
            acc = product(a, w, acc, PRECISION)
    acc += tl.load(bias + c, mask=c < biased * width, other=0.0).to(tl.float32)[None, :]
    tl.store(out + r[:, None] * o_r + c[None, :], acc.to(out.dtype.element_ty), mask=(r < num_rows)[:, None] & (c < width)[None, :])


@triton.jit(do_not_specialize=["num_rows"])
def weight_gradient(heads, x, rows, counts, out, a_r, a_h, x_r, o_h, o_d, o_c, num_rows, width, head_dim,
                    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr):
    """One program: one head, BLOCK_N columns, over the head's list of rows in one order."""
    h = tl.program_id(1)
    count = tl.load(counts + h)
    c = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    in_head = d < head_dim
    list_at = rows + h.to(tl.int64) * num_rows
    acc = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    for start in range(0, count, BLOCK_K):
        place = start + tl.arange(0, BLOCK_K)
        active = place < count
        r = tl.load(list_at + place, mask=active, other=0).to(tl.int64)
        a = tl.load(heads + r[:, None] * a_r + h.to(tl.int64) * a_h + d[None, :], mask=active[:, None] & in_head[None, :], other=0.0)
        b = tl.load(x + r[:, None] * x_r + c[None, :], mask=active[:, None] & (c < width)[None, :], other=0.0)
        acc = product(tl.trans(a), b, acc, PRECISION)
    o_at = out + h.to(tl.int64) * o_h + d.to(tl.int64)[:, None] * o_d + c.to(tl.int64)[None, :] * o_c
    tl.store(o_at, acc.to(out.dtype.element_ty), mask=in_head[:, None] & (c < width)[None, :])
