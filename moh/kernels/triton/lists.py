"""Which rows use a head, from the gates alone, in one launch.

Of every sequence n and head h a list of its T rows: those whose gate is not zero, ascending, then the others. So a kernel
that takes rows by this list computes the first `count` of them and writes zeros to the rest, and nobody clears memory.

    rows    int32 [H, R]     the list of (n, h) begins at [h, first row of n]; entries count from the sequence's first row
    counts  int32 [N, H]
    before  int32 [N, H, J]  how many of the rows below kStep * j use the head: where a list passes a given row"""

import triton
import triton.language as tl

from .tile import sequence_of

STEP = 64  # rows of an entry of `before`


@triton.jit(do_not_specialize=["queries", "total_rows", "rows_per_batch", "steps"])
def list_rows(gates, rows, counts, before, sequences, queries, total_rows, rows_per_batch, num_heads, steps,
              SEQUENCES: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    n, h = tl.program_id(0), tl.program_id(1)
    batch, first_query, length, _, _, _ = sequence_of(n, sequences, queries, 0, SEQUENCES)
    first = batch * rows_per_batch + first_query
    selected_before = tl.zeros([], tl.int32)
    lane = tl.arange(0, BLOCK)
    for start in range(0, length, BLOCK):
        t = start + lane
        inside = t < length
        gate = tl.load(gates + (first + t) * num_heads + h, mask=inside, other=0.0)
        selected = (gate != 0).to(tl.int32)
        through = selected_before + tl.cumsum(selected, 0)
        own = through - selected  # selected rows below t
        place = tl.where(selected != 0, own, length - 1 - (t - own))
        tl.store(rows + h.to(tl.int64) * total_rows + first + place, t, mask=inside)
        tl.store(before + (n * num_heads + h) * steps + t // STEP, own, mask=inside & (t % STEP == 0))
        selected_before += tl.sum(selected, 0)
    tl.store(counts + n * num_heads + h, selected_before)
