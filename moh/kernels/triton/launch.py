"""Tensors in, launches out. Shapes as in moh/kernels/head_attention.h and projection.h; nothing here reads a tensor's
contents, so nothing waits for the device. Kernels read the elements of a head side by side: other layouts are copied."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import backward, decode, forward, lists, projection
from .tiles import FEW, FEW_ROWS, SPLIT, block_d, tiles

INTERPRETED = type(lists.list_rows).__name__ == "InterpretedFunction"
MAX_HEAD_DIM = 256


def unsupported_reason(query: Tensor) -> str:
    """Empty: the kernels compute a call with such a query."""
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the Triton kernels compute fp32, bf16 and fp16, not {query.dtype}"
    if query.shape[-1] > MAX_HEAD_DIM:
        return f"the Triton kernels take head sizes up to {MAX_HEAD_DIM}, not {query.shape[-1]}"
    if not query.is_cuda and not INTERPRETED:
        return f"the Triton kernels run on CUDA devices, not on {query.device.type} (TRITON_INTERPRET=1: in Triton's interpreter)"
    if query.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(query.device) < (8, 0):
        return f"the Triton kernels need compute capability 8.0 or newer, this is {torch.cuda.get_device_name(query.device)}"
    return ""


class Sequences(NamedTuple):
    """Of a call whose sequences are not simply its batches: tile.py has the columns of `table`."""

    table: Tensor  # int64 [N, 6]
    max_queries: int  # bounds known without looking
    max_keys: int
    pages: Tensor | None = None  # int32
    page_size: int = 1


class Lists(NamedTuple):
    rows: Tensor
    counts: Tensor
    before: Tensor


class _Options(NamedTuple):
    """What launches of one call share."""

    element_size: int
    head_dim: int
    arch: int
    precision: str

    def of(self, kernel: str, rows: int = 1 << 20, bias: bool = False) -> dict:
        chosen = tiles(kernel, self.element_size, self.head_dim, self.arch, rows, bias=bias, exact=self.precision == "tf32x3")
        if INTERPRETED:  # programs are dear there, and small shapes should have several tiles
            chosen = {name: min(size, 2048 if name == "BLOCK" else 64 if name == "BLOCK_N" else 32) for name, size in chosen.items()}
        return chosen | {"enable_fp_fusion": True}


def _options(tensor: Tensor, head_dim: int) -> _Options:
    arch = 90
    if tensor.is_cuda:
        major, minor = torch.cuda.get_device_capability(tensor.device)
        arch = 10 * major + minor
    # As torch's products: exact to fp32 by three tf32 products, unless a user chose speed.
    precision = "ieee"
    if tensor.dtype == torch.float32 and not INTERPRETED:
        precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    return _Options(tensor.element_size(), head_dim, arch, precision)


def _dense_heads(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _strides(tensor: Tensor | None, count: int) -> tuple[int, ...]:
    return tuple(tensor.stride()[:count]) if tensor is not None else (0,) * count


def _on_its_device(function):
    """Triton launches on the current device, which need not be the tensors'."""

    @functools.wraps(function)
    def call(first: Tensor, *rest, **options):
        with torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext():
            return function(first, *rest, **options)

    return call


@_on_its_device
def list_rows(gates: Tensor, queries: int, num_sequences: int, sequences: Sequences | None = None) -> Lists:
    """gates fp32 [..., H] contiguous; lists of num_sequences sequences of `queries` rows, or of those given."""
    heads = gates.shape[-1]
    total = gates.numel() // heads
    longest = sequences.max_queries if sequences else queries
    steps = max(1, -(-longest // lists.STEP))
    rows = gates.new_empty((heads, total), dtype=torch.int32)
    counts = gates.new_empty((num_sequences, heads), dtype=torch.int32)
    before = gates.new_empty((num_sequences, heads, steps), dtype=torch.int32)
    lists.list_rows[(num_sequences, heads)](
        gates, rows, counts, before, sequences.table if sequences else None, queries, total, queries, heads, steps,
        SEQUENCES=sequences is not None, STEP=lists.STEP, **_options(gates, 64).of("list_rows"))
    return Lists(rows, counts, before)


@_on_its_device
def attention_forward(query: Tensor, key: Tensor, value: Tensor, gates: Tensor, *, bias: Tensor | None = None, causal: bool = False,
                      scale: float | None = None, window: int = 0, soft_cap: float = 0.0, sink: Tensor | None = None,
                      sequences: Sequences | None = None) -> tuple[Tensor, Tensor]:
    """Output and lse. query [B, T, H, D]; gates [B, T, H]; bias broadcastable to [B, H, T, S]. With sequences: rows that
    belong to none are zero."""
    batch, length, heads, head_dim = query.shape
    query, key, value = (_dense_heads(t) for t in (query, key, value))
    gates = gates.float().contiguous()
    new = torch.empty if sequences is None else torch.zeros
    out = new((batch, length, heads, head_dim), dtype=query.dtype, device=query.device)
    lse = torch.empty((batch, length, heads), dtype=torch.float32, device=query.device)
    if sequences is not None:
        lse.fill_(-math.inf)
    num = batch if sequences is None else sequences.table.shape[0]
    if out.numel() == 0 or num == 0:
        return out, lse
    longest = length if sequences is None else sequences.max_queries
    most_keys = key.shape[1] if sequences is None else sequences.max_keys
    kv_heads = key.shape[2]
    group = heads // kv_heads
    options = _options(query, head_dim)
    if bias is not None:
        bias = bias.expand(batch, heads, length, key.shape[1])
    num_sinks = 0 if sink is None else heads
    sinks = gates if sink is None else sink.float().contiguous()  # not read if there are none
    paged = sequences is not None and sequences.pages is not None
    table, pages = (sequences.table, sequences.pages) if sequences else (None, None)
    page_size = sequences.page_size if sequences else 1
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    flags = dict(CAUSAL=causal, WINDOW=window > 0, SEQUENCES=sequences is not None, BLOCK_D=block_d(head_dim))
    variant = dict(flags, SOFT_CAP=soft_cap > 0, BIAS=bias is not None, PAGED=paged, PRECISION=options.precision)
    pages = table if pages is None else pages  # never read, but a pointer
    pages = query if pages is None else pages
    strides = (*_strides(query, 3), *_strides(key, 3), *_strides(value, 3))

    if longest <= FEW or sequences is not None:
        few = min(FEW, longest)
        parts = max(1, -(-most_keys // SPLIT))
        partial = torch.empty((num, parts, few, heads, head_dim), dtype=torch.float32, device=query.device)
        stats = torch.empty((num, parts, few, heads, 2), dtype=torch.float32, device=query.device)
        chosen = options.of("attention_decode", few * group)
        blocks_m = -(-few * group // chosen["BLOCK_M"])
        decode.attention_decode[(parts, kv_heads * blocks_m, num)](
            query, key, value, bias, gates, partial, stats, table, pages, *strides, *_strides(bias, 4), length, key.shape[1], length,
            heads, group, head_dim, page_size, window, scale, soft_cap, few, SPLIT=SPLIT, **variant, **chosen)
        decode.attention_join[(few, heads, num)](
            partial, stats, gates, sinks, out, lse, table, *_strides(out, 3), length, key.shape[1], length, heads, head_dim, window, few,
            parts, num_sinks, SPLIT=SPLIT, **flags, **options.of("attention_join"))
        if longest <= FEW:
            return out, lse
    found = list_rows(gates, length, num, sequences)
    chosen = options.of("attention_forward", bias=bias is not None)
    forward.attention_forward[(-(-longest // chosen["BLOCK_M"]), heads, num)](
        query, key, value, bias, gates, sinks, out, lse, found.rows, found.counts, table, pages, *strides, *_strides(out, 3),
        *_strides(bias, 4), length, key.shape[1], batch * length, length, heads, group, head_dim, page_size, window, scale, soft_cap,
        FEW, num_sinks, **variant, **chosen)
    return out, lse


@_on_its_device
def attention_backward(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, gates: Tensor, lse: Tensor, *,
                       bias: Tensor | None = None, causal: bool = False, scale: float | None = None, window: int = 0,
                       soft_cap: float = 0.0, bias_gradient: bool = False,
                       sequences: Sequences | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, gates and, [B, H, T, S] fp32 or empty, of the bias. Sequences without pages. A sink's
    gradient follows from out and lse."""
    batch, length, heads, head_dim = query.shape
    query, key, value, grad_out = (_dense_heads(t) for t in (query, key, value, grad_out.to(query.dtype)))
    gates, lse = gates.float().contiguous(), lse.contiguous()
    new = torch.empty_like if sequences is None else torch.zeros_like
    shaped = lambda t: new(t, memory_format=torch.contiguous_format)  # noqa: E731
    grad_query, grad_key, grad_value, grad_gates = shaped(query), shaped(key), shaped(value), shaped(gates)
    whole = (batch, heads, length, key.shape[1]) if bias_gradient else (0,)
    grad_bias = new(lse.new_empty(whole))
    num = batch if sequences is None else sequences.table.shape[0]
    if query.numel() == 0 or num == 0:
        return grad_query, grad_key.zero_(), grad_value.zero_(), grad_gates, grad_bias
    longest = length if sequences is None else sequences.max_queries
    most_keys = key.shape[1] if sequences is None else sequences.max_keys
    group = heads // key.shape[2]
    options = _options(query, head_dim)
    if bias is not None:
        bias = bias.expand(batch, heads, length, key.shape[1])
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    found = list_rows(gates, length, num, sequences)
    table = sequences.table if sequences else None
    flags = dict(CAUSAL=causal, WINDOW=window > 0, SOFT_CAP=soft_cap > 0, BIAS=bias is not None, SEQUENCES=sequences is not None,
                 PRECISION=options.precision, BLOCK_D=block_d(head_dim))
    strides = (*_strides(query, 3), *_strides(key, 3), *_strides(value, 3), *_strides(grad_out, 3))
    sizes = (length, key.shape[1], batch * length, length, heads, group, head_dim, window, scale, soft_cap)

    chosen = options.of("attention_backward_rows", bias=bias is not None)
    backward.attention_backward_rows[(-(-longest // chosen["BLOCK_M"]), heads, num)](
        query, key, value, bias, gates, lse, grad_out, grad_query, grad_gates, grad_bias if bias_gradient else None, found.rows,
        found.counts, table, *strides, *_strides(grad_query, 3), *_strides(bias, 4),
        *(_strides(grad_bias, 3) if bias_gradient else (0, 0, 0)), *sizes, GRAD_BIAS=bias_gradient, **flags, **chosen)
    if most_keys > 0:
        chosen = options.of("attention_backward_keys", bias=bias is not None)
        backward.attention_backward_keys[(-(-most_keys // chosen["BLOCK_N"]), key.shape[2], num)](
            query, key, value, bias, gates, lse, grad_out, grad_gates, grad_key, grad_value, found.rows, found.counts, found.before,
            table, *strides, *_strides(grad_key, 3), *_strides(grad_value, 3), *_strides(bias, 4), *sizes, found.before.shape[2],
            STEP=lists.STEP, **flags, **chosen)
    return grad_query, grad_key, grad_value, grad_gates, grad_bias


def _row_lists(gates: Tensor) -> tuple[Tensor, Lists]:
    """All rows as one sequence."""
    gates = gates.float().reshape(-1, gates.shape[-1]).contiguous()
    return gates, list_rows(gates, gates.shape[0], 1)


@_on_its_device
def project_heads(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None = None, found: Lists | None = None) -> Tensor:
    """x [R, C], weight [H, D, C] of any strides, gates [R, H], bias [H, D]: heads [R, H, D]."""
    (num_rows, width), (heads, head_dim, _) = x.shape, weight.shape
    x = _dense_heads(x)
    out = x.new_empty((num_rows, heads, head_dim))
    if out.numel() == 0:
        return out
    found = found or _row_lists(gates)[1]
    options = _options(x, head_dim)
    chosen = options.of("project_heads", num_rows)
    projection.project_heads[(-(-num_rows // chosen["BLOCK_M"]), heads)](
        x, weight, x if bias is None else bias.contiguous(), found.rows, found.counts, out, x.stride(0), *weight.stride(),
        *_strides(out, 2), num_rows, width, head_dim, int(bias is not None), PRECISION=options.precision, BLOCK_D=block_d(head_dim),
        **chosen)
    return out


@_on_its_device
def combine_heads(heads: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None = None) -> Tensor:
    """heads [R, H, D], weight [H, D, C] of any strides, gates [R, H], bias [C]: [R, C]."""
    (num_rows, num_heads, head_dim), width = heads.shape, weight.shape[2]
    heads = _dense_heads(heads)
    out = heads.new_empty((num_rows, width))
    if out.numel() == 0:
        return out
    options = _options(heads, head_dim)
    chosen = options.of("combine_heads", num_rows)
    projection.combine_heads[(-(-width // chosen["BLOCK_N"]), -(-num_rows // chosen["BLOCK_M"]))](
        heads, weight, heads if bias is None else bias.contiguous(), gates.float().contiguous(), out, *_strides(heads, 2),
        *weight.stride(), out.stride(0), num_rows, num_heads, width, head_dim, int(bias is not None), SKIP=num_rows <= FEW_ROWS,
        PRECISION=options.precision, BLOCK_D=block_d(head_dim), **chosen)
    return out


@_on_its_device
def weight_gradient(heads: Tensor, x: Tensor, gates: Tensor, out: Tensor, found: Lists | None = None) -> Tensor:
    """heads [R, H, D], x [R, C], gates [R, H]: fills out [H, D, C], of any strides."""
    (num_rows, num_heads, head_dim), width = heads.shape, x.shape[1]
    heads, x = _dense_heads(heads), _dense_heads(x)
    if out.numel() == 0:
        return out
    if num_rows == 0:
        return out.zero_()
    found = found or _row_lists(gates)[1]
    options = _options(x, head_dim)
    chosen = options.of("weight_gradient")
    projection.weight_gradient[(-(-width // chosen["BLOCK_N"]), num_heads)](
        heads, x, found.rows, found.counts, out, *_strides(heads, 2), x.stride(0), *out.stride(), num_rows, width, head_dim,
        PRECISION=options.precision, BLOCK_D=block_d(head_dim), **chosen)
    return out
