"""The Triton kernels (moh/kernels/triton) behind the operators, for tensors on CUDA devices. They compile as they are first
called. No GPU has run them yet: results are shown in Triton's interpreter, speed is not known (docs/cuda.md)."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pathlib
import sys
import types

import torch
from torch import Tensor

_PACKAGE = "moh_triton_kernels"


def _folder() -> pathlib.Path | None:
    here = pathlib.Path(__file__).resolve().parent
    for folder in (here / "triton_kernels", here.parents[1] / "moh" / "kernels" / "triton"):  # installed; source tree
        if (folder / "launch.py").exists():
            return folder
    return None


def kernels(name: str) -> types.ModuleType:
    """A module of the kernels' folder."""
    if _PACKAGE not in sys.modules:
        folder = _folder()
        spec = importlib.util.spec_from_file_location(_PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)])
        module = importlib.util.module_from_spec(spec)
        sys.modules[_PACKAGE] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{_PACKAGE}.{name}")


def present() -> bool:
    """Whether triton is installed; it is imported by the first call that needs it."""
    return importlib.util.find_spec("triton") is not None and _folder() is not None


@functools.cache
def unavailable_reason() -> str:
    """Empty: the kernels can be compiled here (which does not mean that there is a GPU)."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if _folder() is None:
        return f"the kernels' folder triton_kernels is missing beside {__file__}; install the package again"
    try:
        kernels("launch")
    except Exception as error:  # a triton that does not fit, or is broken: torch's operations remain
        return f"the Triton kernels do not load: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def launch() -> types.ModuleType:
    """The module that launches the kernels."""
    return kernels("launch")


def reason_against(query: Tensor) -> str:
    """Why the kernels do not compute a call with such a query; empty: they do."""
    return unavailable_reason() or launch().unsupported_reason(query)


def wanted_on_cpu() -> bool:
    """Tensors on the CPU run in Triton's interpreter if somebody asks for that: MOH_BACKEND=triton with TRITON_INTERPRET=1."""
    return os.environ.get("MOH_BACKEND") == "triton" and os.environ.get("TRITON_INTERPRET") == "1"


def _need(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)


def _list_rows(gates: Tensor) -> tuple[Tensor, Tensor]:
    """moh::list_rows: one list after the other, zeros behind the last."""
    _need(gates.dim() > 0 and gates.shape[-1] > 0, f"[select_heads] gates must be [..., H], got {list(gates.shape)}")
    heads = gates.shape[-1]
    total = gates.numel() // heads
    found = launch().list_rows(gates.detach().float().contiguous(), total, 1)
    first = torch.nn.functional.pad(found.counts[0].long().cumsum(0), (1, 0))
    place = torch.arange(total, device=gates.device).unsqueeze(0)
    target = torch.where(place < found.counts[0].unsqueeze(1), first[:-1].unsqueeze(1) + place, gates.numel())
    rows = torch.zeros(gates.numel() + 1, dtype=torch.int32, device=gates.device)
    return rows.scatter_(0, target.flatten(), found.rows.flatten())[:-1].clone(), first


def _heads_weight(weight: Tensor, heads: int, columns: bool) -> Tensor:
    """[H, D, C] as kernels take it, from W_Q [H * D, C] or, columns, W_O [C, H * D]."""
    return (weight.t() if columns else weight).unflatten(0, (heads, -1))


def _masked(heads: Tensor, gates: Tensor) -> Tensor:
    return heads.masked_fill(gates.eq(0).unsqueeze(-1), 0)


def _project_heads(x, weight, bias, gates, rows=None, first=None):
    heads, width = gates.shape[-1], x.shape[-1]
    _need(weight.dim() == 2 and weight.shape[1] == width and weight.shape[0] % heads == 0 and gates.shape[:-1] == x.shape[:-1],
          f"[project_heads] x [..., C], weight [H * D, C] and gates [..., H] do not fit: {list(x.shape)}, {list(weight.shape)}, {list(gates.shape)}")
    if reason_against(x):
        return _masked(torch.nn.functional.linear(x, weight, bias).unflatten(-1, (heads, -1)), gates)
    out = launch().project_heads(x.reshape(-1, width), _heads_weight(weight, heads, False), gates.reshape(-1, heads),
                                 None if bias is None else bias.view(heads, -1))
    return out.view(*gates.shape, -1)


def _combine_heads(heads, weight, bias, gates, rows=None, first=None):
    num = gates.shape[-1]
    _need(weight.dim() == 2 and weight.shape[1] == num * heads.shape[-1] and gates.shape == heads.shape[:-1],
          f"[combine_heads] heads [..., H, D], weight [C, H * D] and gates [..., H] do not fit: {list(heads.shape)}, {list(weight.shape)}, {list(gates.shape)}")
    if reason_against(heads) or gates.numel() > 64 * num:  # tiles of many rows skip nothing: projection.py says why
        return torch.nn.functional.linear(_masked(heads, gates).flatten(-2), weight, bias)
    out = launch().combine_heads(heads.reshape(-1, num, heads.shape[-1]), _heads_weight(weight, num, True), gates.reshape(-1, num), bias)
    return out.view(*gates.shape[:-1], -1)


def _weight_gradient(heads, x, gates, transposed, rows=None, first=None):
    num, dim, width = gates.shape[-1], heads.shape[-1], x.shape[-1]
    _need(gates.shape == heads.shape[:-1] and x.shape[:-1] == gates.shape[:-1],
          f"[head_weight_gradient] heads [..., H, D], x [..., C] and gates [..., H] do not fit: {list(heads.shape)}, {list(x.shape)}, {list(gates.shape)}")
    if reason_against(heads):
        a, b = _masked(heads, gates).reshape(-1, num * dim), x.reshape(-1, width)
        return b.t() @ a if transposed else a.t() @ b
    out = heads.new_empty((width, num * dim) if transposed else (num * dim, width))
    launch().weight_gradient(heads.reshape(-1, num, dim), x.reshape(-1, width), gates.reshape(-1, num), _heads_weight(out, num, transposed))
    return out


def _attention_paged(query, key, value, gates, sequences, pages, rows=None, first=None, causal=True, window=0, soft_cap=0.0, sink=None,
                     scale=None):
    """moh::head_attention_paged with all tensors on one device. What `sequences` and `pages` hold is not checked: looking would
    wait for the device."""
    _need(query.dim() == 3 and key.dim() == 4 and key.shape == value.shape and gates.shape == query.shape[:2] and key.shape[1] > 0,
          f"[head_attention_paged] query [R, H, D], key and value [P, page, Hkv, D] and gates [R, H] do not fit: {list(query.shape)}, "
          f"{list(key.shape)}, {list(value.shape)}, {list(gates.shape)}")
    _need(sequences.dim() == 2 and sequences.shape[1] == 3 and sequences.dtype == torch.int64 and pages.dim() == 2 and pages.is_contiguous()
          and pages.dtype == torch.int32 and len(pages) == len(sequences), "[head_attention_paged] sequences must be int64 [N, 3] and pages "
          f"contiguous int32 [N, pages], got {sequences.dtype} {list(sequences.shape)} and {pages.dtype} {list(pages.shape)}")
    _need(all(t.device == query.device for t in (key, value, gates, sequences, pages)), "[head_attention_paged] tensors must be on one device")
    if reason := reason_against(query):
        raise RuntimeError(f"[head_attention_paged] no kernel: {reason}")
    begin, length, keys = sequences.unbind(1)
    none = torch.zeros_like(begin)
    table = torch.stack([none, begin, length, keys, none, torch.arange(len(pages), device=pages.device) * pages.shape[1]], 1)
    found = launch().Sequences(table, query.shape[0], pages.shape[1] * key.shape[1], pages, key.shape[1])
    out, _ = launch().attention_forward(query.unsqueeze(0), key, value, gates.unsqueeze(0), causal=causal, scale=scale, window=window,
                                        soft_cap=soft_cap, sink=sink, sequences=found)
    return out[0]


# Operators that libmoh.so has and this package alone has not.
OF_THE_LIBRARY = {"list_rows": _list_rows, "project_heads": _project_heads, "combine_heads": _combine_heads,
                  "head_weight_gradient": _weight_gradient, "head_attention_paged": _attention_paged}
