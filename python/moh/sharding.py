"""torch.ops.moh.head_attention on DTensors: the batch, or the heads of query, key, value and gates, may be split over a mesh.

    moh.sharding.register()
"""

from __future__ import annotations

import torch

from . import ops  # noqa: F401  (defines the operators)

_done = False


def register() -> None:
    global _done
    if _done:
        return
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    def splits(query, key, bias):
        """Dimensions of query that may be split, with that of the bias that goes with it (None: the bias has no such dimension)."""
        size = query.mesh.size()
        shape = tuple(bias.shape) if bias is not None else ()

        def of_bias(dim):
            place = dim - (4 - len(shape))
            return None if place < 0 or shape[place] == 1 else place

        batch = (0, of_bias(0))
        # A rank's query heads must find their own key heads on it.
        heads = [(2, of_bias(1))] if key.shape[2] % size == 0 else []
        return [batch, *heads]

    def rows_of(query, key, bias):
        """(kind of split, placement of bias) with placements as functions of what a tensor looks like."""
        for dim, bias_dim in splits(query, key, bias):
            yield dim, (Replicate() if bias_dim is None else Shard(bias_dim)) if bias is not None else None

    def gathered(*arguments):
        """Placements of the remaining arguments: a tensor among them is whole on every rank."""
        return [Replicate() if hasattr(argument, "placements") else None for argument in arguments]

    def of_sink(dim, sink):
        return None if sink is None else Shard(0) if dim == 2 else Replicate()

    @register_sharding(torch.ops.moh.head_attention_forward.default)
    def forward(query, key, value, gates, bias, causal, scale, rows=None, first=None, window=0, soft_cap=0.0, sink=None):
        tail = [None, None, *gathered(rows, first), None, None]
        options = [([Replicate()] * 2, [*[Replicate()] * 4, *gathered(bias), *tail, *gathered(sink)])]
        if rows is None:  # lists of rows are those of all heads
            for dim, bias_place in rows_of(query, key, bias):
                options.append(([Shard(dim)] * 2, [*[Shard(dim)] * 4, bias_place, *tail, of_sink(dim, sink)]))
        return options

    @register_sharding(torch.ops.moh.head_attention_backward.default)
    def backward(grad_out, query, key, value, gates, bias, out, lse, causal, scale, bias_gradient, rows=None, first=None, window=0,
                 soft_cap=0.0, sink=None):
        tail = [None, None, None, *gathered(rows, first), None, None]
        whole = Replicate()
        options = [([whole] * 5, [*[whole] * 5, *gathered(bias), whole, whole, *tail, *gathered(sink)])]
        if rows is None:
            for dim, bias_place in rows_of(query, key, bias):
                grad_bias = Shard(0 if dim == 0 else 1) if bias_gradient else whole  # [B, H, T, S]
                places = [*[Shard(dim)] * 5, bias_place, Shard(dim), Shard(dim), *tail, of_sink(dim, sink)]
                options.append(([*[Shard(dim)] * 4, grad_bias], places))
        return options

    _done = True
