"""torch.ops.moh.head_attention on top of the kernels: schema, checks, autograd, autocast, shapes for torch.compile, and the
composite form, which is the operator's meaning and runs where no kernel does. With the whole libmoh.so loaded its own
registrations stand and this file adds those for CUDA tensors alone (gpu.py)."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from . import gpu
from ._library import unavailable_reason

# As libmoh.so has them; rows and first, lists that it may be handed, are found anew here.
_TENSORS = "Tensor query, Tensor key, Tensor value, Tensor gates"
_VARIANT = "Tensor? rows=None, Tensor? first=None, int window=0, float soft_cap=0.0, Tensor? sink=None"
_warned: set[str] = set()


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class Variant(NamedTuple):
    """Which keys a query sees and what becomes of its scores."""

    bias: Tensor | None = None  # added, broadcastable to [B, H, T, S]
    causal: bool = False  # the last query sees every key
    scale: float | None = None  # 1/sqrt(D) unless given
    window: int = 0  # with causal: only the last so many keys
    soft_cap: float = 0.0  # scores become soft_cap * tanh(score / soft_cap), before the bias
    sink: Tensor | None = None  # [H]: exp(sink) joins the softmax's sum, without a value

    def factor(self, query: Tensor) -> float:
        return 1 / math.sqrt(query.shape[3]) if self.scale is None else self.scale


def _check(query: Tensor, key: Tensor, value: Tensor, gates: Tensor, variant: Variant) -> None:
    bias, sink = variant.bias, variant.sink

    def need(condition: bool, text: str) -> None:
        if not condition:
            raise ValueError(f"[head_attention] {text}")

    need(query.dim() == 4, f"query must be [B, T, H, D], got {list(query.shape)}")
    need(key.dim() == 4 and key.shape == value.shape, f"key and value must be [B, S, Hkv, D], got {list(key.shape)} and {list(value.shape)}")
    need(key.shape[0] == query.shape[0] and key.shape[3] == query.shape[3], f"query {list(query.shape)} and key {list(key.shape)} must agree in batch and head size")
    need(key.shape[2] > 0 and query.shape[2] % key.shape[2] == 0, f"{query.shape[2]} query heads must be a multiple of {key.shape[2]} key heads")
    need(gates.shape == query.shape[:3], f"gates must be [B, T, H] = {list(query.shape[:3])}, got {list(gates.shape)}")
    need(query.is_floating_point() and query.dtype == key.dtype == value.dtype, f"query, key and value must have one floating dtype, got {query.dtype}, {key.dtype} and {value.dtype}")
    need(query.device == key.device == value.device == gates.device, "query, key, value and gates must be on one device")
    if bias is not None:
        wanted = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
        fits = bias.dim() <= 4 and all(a in (1, b) for a, b in zip(bias.shape[::-1], wanted[::-1]))
        need(fits, f"bias {list(bias.shape)} must be broadcastable to [B, H, T, S] = {list(wanted)}")
        need(bias.is_floating_point(), f"bias must be of a floating type, or a bool mask, true where a key is seen; got {bias.dtype}")
    need(variant.window >= 0 and (variant.window == 0 or variant.causal), f"window must be 0 or, with causal, a number of keys, got {variant.window}")
    need(0 <= variant.soft_cap < math.inf, f"soft_cap must be 0 or positive, got {variant.soft_cap}")
    need(sink is None or (sink.shape == query.shape[2:3] and sink.is_floating_point()), f"sink must be floating [H] = [{query.shape[2]}]")


def _scores(query: Tensor, key: Tensor, variant: Variant) -> Tensor:
    """[B, H, T, S] in fp32 or fp64, -inf where a key is hidden."""
    dtype, groups = _wide(query), query.shape[2] // key.shape[2]
    scores = torch.einsum("bthd,bshd->bhts", query.to(dtype), key.to(dtype).repeat_interleave(groups, 2)) * variant.factor(query)
    if variant.soft_cap > 0:
        scores = variant.soft_cap * torch.tanh(scores / variant.soft_cap)
    if variant.bias is not None:
        scores = scores + variant.bias.to(dtype)
    if variant.causal:
        tokens, keys = scores.shape[-2:]
        seen = torch.ones(tokens, keys, dtype=torch.bool, device=scores.device).tril(keys - tokens)
        if variant.window > 0:
            seen = seen.triu(keys - tokens + 1 - variant.window)
        scores = scores.masked_fill(~seen, -math.inf)
    return scores


def composite(query: Tensor, key: Tensor, value: Tensor, gates: Tensor, variant: Variant = Variant()) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp [B, T, H] with torch's operations, every head computed, differentiable as often as wanted. Gates
    that are zero have no gradient, rows that see no key are zero."""
    with torch.autocast(query.device.type, enabled=False):
        scores, skipped = _scores(query, key, variant), gates.eq(0)
        hidden = scores.eq(-math.inf)
        none = hidden.all(-1, keepdim=True)
        scores = scores.masked_fill(none, 0)  # keeps NaN out of the gradient of rows without keys
        lse = torch.logsumexp(scores, -1)
        if variant.sink is not None:
            lse = torch.logaddexp(lse, variant.sink.to(lse.dtype).view(1, -1, 1).expand_as(lse))
        weights = torch.exp(scores - lse.unsqueeze(-1)).masked_fill(hidden, 0)
        values = value.to(scores.dtype).repeat_interleave(query.shape[2] // key.shape[2], 2)
        out = torch.einsum("bhts,bshd->bthd", weights, values) * gates.to(scores.dtype).unsqueeze(-1)
        out = out.masked_fill(skipped.unsqueeze(-1), 0).to(query.dtype)
        lse = lse.masked_fill(none.squeeze(-1), -math.inf).transpose(1, 2).masked_fill(skipped, -math.inf)
    return out.contiguous(), lse.detach().contiguous()


def _kernel_of(query: Tensor, variant: Variant, backward: bool) -> str:
    """What computes this call: `triton`, `cpu` or, empty, torch's operations. Nothing falls back in silence; fp64 is meant to be
    torch's own operations."""
    if query.is_cuda or gpu.wanted_on_cpu():
        reason = gpu.reason_against(query)
        if not reason:
            return "triton"
        if gpu.wanted_on_cpu() and query.dtype != torch.float64:
            raise RuntimeError(f"[backend] `triton` cannot run: {reason}")
    else:
        reason = unavailable_reason()
        reason = reason or (torch.ops.moh_kernels.attention_reason(query, backward) if query.dtype != torch.float64 else "")
        if not reason and query.dtype != torch.float64:
            return "cpu"
    if query.dtype != torch.float64 and reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"moh.head_attention computes every head with torch's operations: {reason}", stacklevel=3)
    return ""


def _for_kernel(query: Tensor, key: Tensor, variant: Variant) -> tuple[Tensor | None, Tensor | None]:
    """Bias and sink as kernels read them."""
    bias = variant.bias
    if bias is not None:
        bias = bias.float() if bias.dtype == torch.float64 else bias
        bias = bias.expand(query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    return bias, None if variant.sink is None else variant.sink.float().contiguous()


def _forward(query, key, value, gates, bias, causal, scale, rows=None, first=None, window=0, soft_cap=0.0, sink=None):
    variant = Variant(bias, causal, scale, window, soft_cap, sink)
    _check(query, key, value, gates, variant)
    kernel = _kernel_of(query, variant, False)
    if kernel == "triton":
        return gpu.launch().attention_forward(query, key, value, gates, bias=bias, causal=causal, scale=scale, window=window,
                                              soft_cap=soft_cap, sink=sink)
    if not kernel:
        return composite(query, key, value, gates, variant)
    kernel_bias, kernel_sink = _for_kernel(query, key, variant)
    return torch.ops.moh_kernels.attention_forward(query, key, value, gates.float().contiguous(), kernel_bias, causal,
                                                   variant.factor(query), window, soft_cap, kernel_sink)


def _paged(query, key, value, gates, sequences, pages, *, rows=None, first=None, causal=True, window=0, soft_cap=0.0, sink=None,
           scale=None):
    variant, where = Variant(None, causal, scale, window, soft_cap, sink), "[head_attention_paged]"
    if query.dim() != 3 or key.dim() != 4 or key.shape != value.shape or key.shape[1] == 0:
        raise ValueError(f"{where} query must be [R, H, D], key and value [P, page, Hkv, D], got {list(query.shape)}, "
                         f"{list(key.shape)} and {list(value.shape)}")
    if sequences.dtype != torch.int64 or sequences.dim() != 2 or sequences.shape[1] != 3:
        raise ValueError(f"{where} sequences must be int64 [N, 3], got {sequences.dtype} {list(sequences.shape)}")
    if pages.dtype != torch.int32 or pages.dim() != 2 or pages.shape[0] != sequences.shape[0]:
        raise ValueError(f"{where} pages must be int32 [N, pages], got {pages.dtype} {list(pages.shape)}")
    nothing = key.new_empty((1, 0, *key.shape[2:]))
    _check(query[None], nothing, nothing.to(value.dtype), gates[None], variant)
    if query.device.type != "cpu":
        raise ValueError(f"{where} tensors must be on the CPU")
    out = torch.zeros_like(query)
    if _kernel_of(query[None], variant, False) == "cpu":
        torch.ops.moh_kernels.attention_paged(query[None], key, value, gates[None].float().contiguous(), sequences.contiguous(),
                                              pages.contiguous(), causal, variant.factor(query[None]), window, soft_cap,
                                              None if sink is None else sink.float().contiguous(), out[None])
        return out
    for (start, rows, keys), table in zip(sequences.tolist(), pages):
        used = table[: -(-keys // key.shape[1])]
        own_key, own_value = (pool[used].flatten(0, 1)[None, :keys] for pool in (key, value))
        own = slice(start, start + rows)
        out[own] = composite(query[None, own], own_key, own_value, gates[None, own], variant)[0][0]
    return out


def _gradients(grad_out, query, key, value, gates, variant, bias_gradient):
    """By torch's operations; differentiable where the arguments are."""
    inputs = [query, key, value, gates]
    if bias_gradient:
        inputs.append(variant.bias.expand(query.shape[0], query.shape[2], query.shape[1], key.shape[1]))
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        # Inputs may depend on one another: gradients are taken with respect to aliases.
        aliases = [t.view_as(t) if create and t.requires_grad else t.detach().requires_grad_() for t in inputs]
        own = variant._replace(bias=aliases[4]) if bias_gradient else variant
        out, _ = composite(*aliases[:4], own)
        grads = list(torch.autograd.grad(out, aliases, grad_out.to(out.dtype), create_graph=create))
    grads[3] = grads[3].to(_wide(query))
    grads.append(grads.pop().to(_wide(query)) if bias_gradient else query.new_empty(0, dtype=_wide(query)))
    return tuple(grads)


def _backward(grad_out, query, key, value, gates, bias, out, lse, causal, scale, bias_gradient, rows=None, first=None, window=0,
              soft_cap=0.0, sink=None):
    variant = Variant(bias, causal, scale, window, soft_cap, sink)
    kernel = _kernel_of(query, variant, True)
    if kernel == "triton":
        return gpu.launch().attention_backward(grad_out, query, key, value, gates, lse, bias=bias, causal=causal, scale=scale,
                                               window=window, soft_cap=soft_cap, bias_gradient=bias_gradient)
    if not kernel:
        with torch.no_grad():
            return tuple(g.contiguous() for g in _gradients(grad_out, query, key, value, gates, variant, bias_gradient))
    kernel_bias, kernel_sink = _for_kernel(query, key, variant)
    return torch.ops.moh_kernels.attention_backward(grad_out.to(query.dtype), query, key, value, gates.float().contiguous(),
                                                    kernel_bias, out, lse.contiguous(), causal, variant.factor(query),
                                                    bias_gradient, window, soft_cap, kernel_sink)


def _forward_shapes(query, key, value, gates, *rest):
    return query.new_empty(query.shape), query.new_empty(gates.shape, dtype=_wide(query))


def _backward_shapes(grad_out, query, key, value, gates, bias, out, lse, causal, scale, bias_gradient, *rest):
    shape = (query.shape[0], query.shape[2], query.shape[1], key.shape[1]) if bias_gradient else (0,)
    return (query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape),
            gates.new_empty(gates.shape, dtype=_wide(query)), query.new_empty(shape, dtype=_wide(query)))


def _save(ctx, inputs, output):
    query, key, value, gates, bias, causal, scale, _, _, window, soft_cap, sink = inputs
    ctx.save_for_backward(query, key, value, gates, bias, sink, *output)
    ctx.variant = Variant(None, causal, scale, window, soft_cap, None)
    ctx.mark_non_differentiable(output[1])


def _derivative(ctx, grad_out, grad_lse):
    query, key, value, gates, bias, sink, out, lse = ctx.saved_tensors
    variant = ctx.variant._replace(bias=bias, sink=sink)
    bias_gradient = bias is not None and ctx.needs_input_grad[4]
    sink_gradient = sink is not None and ctx.needs_input_grad[11]
    tensors = [t for t in (grad_out, query, key, value, gates, bias) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):  # somebody differentiates the gradient
        if sink_gradient:
            raise RuntimeError("[head_attention] no second derivative is known where a sink has a gradient; detach the sink")
        grads = _gradients(grad_out, query, key, value, gates, variant, bias_gradient)
    else:
        grads = torch.ops.moh.head_attention_backward(grad_out, query, key, value, gates, bias, out, lse, variant.causal, variant.scale,
                                                      bias_gradient, None, None, variant.window, variant.soft_cap, sink)
    grad_bias = grads[4].sum_to_size(bias.shape).to(bias.dtype) if bias_gradient else None
    grad_sink = None
    if sink_gradient:  # what a row gives its sink it takes from its output
        share = torch.exp(sink.to(lse.dtype) - lse).masked_fill(lse.eq(-math.inf), 0)
        grad_sink = -(share * (grad_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1)).sum((0, 1)).to(sink.dtype)
    return grads[0], grads[1], grads[2], grads[3].to(gates.dtype), grad_bias, None, None, None, None, None, None, grad_sink


def _autocast_rule(device: str, name: str):
    def rule(query, key, value, *rest, **options):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = (t if t.dtype == torch.float64 else t.to(dtype) for t in (query, key, value))
        with torch.autocast(device, enabled=False):
            return getattr(torch.ops.moh, name)(query, key, value, *rest, **options)

    return rule


def _head_attention(query, key, value, gates, *, bias=None, causal=False, scale=None, window=0, soft_cap=0.0, sink=None):
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=torch.float32).masked_fill(~bias, -math.inf)
    return torch.ops.moh.head_attention_forward(query, key, value, gates, bias, causal, scale, None, None, window, soft_cap, sink)[0]


_fragment: torch.library.Library | None = None  # registrations last as long as it does


def _register() -> None:
    global _fragment
    unavailable_reason()
    whole = torch._C._dispatch_has_kernel("moh::head_attention_forward")
    _fragment = torch.library.Library("moh", "FRAGMENT")
    if not whole:
        _define()
    if gpu.present():
        _register_gpu(whole)


def _register_gpu(whole: bool) -> None:
    """The Triton kernels, for tensors on CUDA devices; where somebody asks for the interpreter, on the CPU too."""
    for key in ("CUDA", "CPU") if gpu.wanted_on_cpu() else ("CUDA",):
        _fragment.impl("head_attention_forward", _forward, key)
        _fragment.impl("head_attention_backward", _backward, key)
        for name, function in gpu.OF_THE_LIBRARY.items() if whole else ():
            with warnings.catch_warnings():  # of list_rows, which the library has for the CPU
                warnings.simplefilter("ignore")
                _fragment.impl(name, function, key, allow_override=True)


def _define() -> None:
    tags = (torch.Tag.pt2_compliant_tag,)
    _fragment.define(f"head_attention({_TENSORS}, *, Tensor? bias=None, bool causal=False, float? scale=None, int window=0, "
                     "float soft_cap=0.0, Tensor? sink=None) -> Tensor", tags=tags)
    _fragment.define(f"head_attention_forward({_TENSORS}, Tensor? bias, bool causal, float? scale, {_VARIANT}) -> (Tensor out, Tensor lse)", tags=tags)
    _fragment.define(f"head_attention_backward(Tensor grad_out, {_TENSORS}, Tensor? bias, Tensor out, Tensor lse, bool causal, "
                     f"float? scale, bool bias_gradient, {_VARIANT}) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, "
                     "Tensor grad_gates, Tensor grad_bias)", tags=tags)
    _fragment.define(f"head_attention_paged({_TENSORS}, Tensor sequences, Tensor pages, *, Tensor? rows=None, Tensor? first=None, "
                     "bool causal=True, int window=0, float soft_cap=0.0, Tensor? sink=None, float? scale=None) -> Tensor", tags=tags)
    _fragment.impl("head_attention", _head_attention, "CompositeImplicitAutograd")
    _fragment.impl("head_attention_forward", _forward, "CompositeExplicitAutograd")
    _fragment.impl("head_attention_backward", _backward, "CompositeExplicitAutograd")
    _fragment.impl("head_attention_paged", _paged, "CompositeExplicitAutograd")
    torch.library.register_fake("moh::head_attention_paged", lambda query, *rest, **options: torch.empty_like(query), lib=_fragment)
    torch.library.register_fake("moh::head_attention_forward", _forward_shapes, lib=_fragment)
    torch.library.register_fake("moh::head_attention_backward", _backward_shapes, lib=_fragment)
    torch.library.register_autograd("moh::head_attention_forward", _derivative, setup_context=_save, lib=_fragment)
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        for name in ("head_attention_forward", "head_attention_paged"):
            _fragment.impl(name, _autocast_rule(device, name), key)


_register()


def head_attention(query: Tensor, key: Tensor, value: Tensor, gates: Tensor, *, bias: Tensor | None = None, causal: bool = False,
                   scale: float | None = None, window: int = 0, soft_cap: float = 0.0, sink: Tensor | None = None) -> Tensor:
    """Attention of each head times its gate: [B, T, H, D] from query [B, T, H, D], key and value [B, S, Hkv, D] (H a multiple
    of Hkv) and gates [B, T, H]. Where a gate is zero nothing is computed and the output is zero.

    bias is added to the scores and broadcastable to [B, H, T, S]; a bool one masks, true where a key is seen. causal: the last
    query sees every key; window, with causal: only the last so many of them. soft_cap > 0: scores become
    soft_cap * tanh(score / soft_cap). sink [H]: exp(sink) joins the softmax's sum. Differentiable in all tensors, but for gates
    that are zero."""
    return torch.ops.moh.head_attention(query, key, value, gates, bias=bias, causal=causal, scale=scale, window=window,
                                        soft_cap=soft_cap, sink=sink)
