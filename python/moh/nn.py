"""Mixture-of-Head layers in plain PyTorch, on the kernels where they are there.

    layer = moh.nn.MoHAttention(512, 8, shared_heads=2, top_k=4)      # 6 of 8 heads a token
    y, _ = layer(x)                                                  # as torch.nn.MultiheadAttention, batch first
    with moh.nn.balance_losses() as losses:                          # for training
        loss = task_loss(model(x)) + 0.01 * sum(losses)
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .ops import head_attention

_collecting = threading.local()


class Routing(NamedTuple):
    gates: Tensor  # [..., H] what multiplies each head's output; shared heads first; zero: the head is not used
    indices: Tensor  # [..., K] the chosen routed heads, best first; 0 is the first routed head
    probabilities: Tensor  # [..., E] softmax of the routed heads' scores


def load_balance_loss(routing: Routing, form: str = "authors") -> Tensor:
    """sum_i P_i f_i over the routed heads, P the mean probability and f the share of tokens that chose the head (paper,
    section 3.3); form "authors": times their number."""
    probabilities = routing.probabilities.flatten(0, -2)
    chosen = torch.zeros_like(probabilities).scatter(-1, routing.indices.flatten(0, -2), 1.0)
    loss = (probabilities.mean(0) * chosen.mean(0)).sum()
    return loss * probabilities.shape[-1] if form == "authors" else loss


@contextlib.contextmanager
def balance_losses() -> Iterator[list[Tensor]]:
    """Collects the load-balance loss of every router that this thread runs inside."""
    outer, losses = getattr(_collecting, "losses", None), []
    _collecting.losses = losses
    try:
        yield losses
    finally:
        _collecting.losses = outer


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class _RouterLinear(nn.Linear):
    """In fp32 whatever the model's type, also under autocast: rounding would choose other heads."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(_wide(x), _wide(self.weight))


class Router(nn.Module):
    """Chooses heads for each token: the first `shared_heads` always, `top_k` of the others.

    router "two-stage": trained matrices wg, wg_1, wg_0 of the token (paper, section 3.2); form "authors" scales gates so that
    a router that does not know yet leaves active heads as they are. router "norm": no parameters, the heads with the longest
    query, gates 0 or 1 with a straight-through gradient (section 3.4)."""

    def __init__(self, dim: int, num_heads: int, shared_heads: int, top_k: int, *, router: str = "two-stage", form: str = "authors",
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if router not in ("two-stage", "norm"):
            raise ValueError(f"router must be `two-stage` or `norm`, got `{router}`")
        if form not in ("paper", "authors"):
            raise ValueError(f"form must be `paper` or `authors`, got `{form}`")
        if not 0 <= shared_heads <= num_heads:
            raise ValueError(f"shared_heads must be in 0..{num_heads}, got {shared_heads}")
        if not 0 <= top_k <= num_heads - shared_heads or shared_heads + top_k == 0:
            raise ValueError(f"top_k must be in 0..{num_heads - shared_heads} (heads less shared heads), with at least one head "
                             f"active, got {top_k}")
        self.num_heads, self.shared_heads, self.top_k, self.router, self.form = num_heads, shared_heads, top_k, router, form
        if router == "two-stage":
            rows = {"wg": num_heads - shared_heads if top_k else 0, "wg_1": shared_heads if shared_heads > 1 else 0,
                    "wg_0": 2 if shared_heads and top_k else 0}
            for name, count in rows.items():
                if count:
                    setattr(self, name, _RouterLinear(dim, count, bias=False, device=device, dtype=dtype))
                    nn.init.normal_(getattr(self, name).weight, std=0.02)

    def extra_repr(self) -> str:
        return f"{self.router}, {self.shared_heads} shared + {self.top_k} of {self.num_heads - self.shared_heads} routed heads"

    def forward(self, x: Tensor, query: Tensor) -> Routing:
        """x [..., C], what the attention projects; query [..., H, D] before rotary embedding and norms."""
        routing = self._by_norm(query) if self.router == "norm" else self._two_stage(x)
        losses = getattr(_collecting, "losses", None)
        if losses is not None and self.top_k:
            losses.append(load_balance_loss(routing, self.form))
        return routing

    def _select(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        indices = torch.sort(scores.detach(), dim=-1, descending=True, stable=True).indices[..., : self.top_k]
        return indices, torch.zeros_like(scores).scatter(-1, indices, 1.0)

    def _by_norm(self, query: Tensor) -> Routing:
        norms = torch.linalg.vector_norm(_wide(query[..., self.shared_heads :, :]), dim=-1)
        scores = torch.zeros_like(norms)
        if norms.shape[-1] > 1:
            deviation = norms.std(-1, keepdim=True)
            scores = torch.where(deviation > 0, norms / torch.where(deviation > 0, deviation, 1.0), scores)
        probabilities = torch.softmax(scores, -1)
        indices, chosen = self._select(scores)
        routed = chosen + (probabilities - probabilities.detach()) * chosen  # p - p: an exact zero that carries the gradient
        return Routing(nn.functional.pad(routed, (self.shared_heads, 0), value=1.0), indices, probabilities)

    def _two_stage(self, x: Tensor) -> Routing:
        authors = self.form == "authors"
        if self.shared_heads > 1:
            shared = torch.softmax(_wide(self.wg_1(x)), -1) * (self.shared_heads if authors else 1.0)
        else:
            shared = torch.ones(*x.shape[:-1], self.shared_heads, device=x.device)
        if self.top_k == 0:
            none = shared[..., :0]
            return Routing(nn.functional.pad(shared, (0, self.num_heads - self.shared_heads)), none.long(), none)
        probabilities = torch.softmax(_wide(self.wg(x)), -1)
        indices, chosen = self._select(probabilities)
        routed = probabilities * chosen
        if authors:
            routed = routed / routed.sum(-1, keepdim=True).clamp_min(torch.finfo(routed.dtype).eps) * self.top_k
        if self.shared_heads:
            kind = torch.softmax(_wide(self.wg_0(x)), -1) * (2.0 if authors else 1.0)
            routed = torch.cat([shared * kind[..., :1], routed * kind[..., 1:]], -1)
        return Routing(routed, indices, probabilities)


def attend(query: Tensor, key: Tensor, value: Tensor, gates: Tensor, *, mask: Tensor | None = None, causal: bool = False,
           dropout: float = 0.0, scale: float | None = None) -> Tensor:
    """head_attention, or torch's attention times the gates where dropout is wanted or no kernel skips heads anyway. mask as
    torch.nn.functional.scaled_dot_product_attention has it; causal needs as many queries as keys there."""
    if dropout == 0 and query.device.type == "cpu":
        return head_attention(query, key, value, gates, bias=mask, causal=causal, scale=scale)
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    if causal and query.shape[2] != key.shape[2]:
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(key.shape[2] - query.shape[2])
        mask, causal = seen if mask is None else _added(mask, query.dtype) + _added(seen, query.dtype), False
    elif causal and mask is not None:
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        mask, causal = _added(mask, query.dtype) + _added(seen, query.dtype), False
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal,
                                                     scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return (out.transpose(1, 2) * gates.unsqueeze(-1)).to(query.dtype)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to scores, from a bool one that is true where a key is seen."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)


class MoHAttention(nn.Module):
    """torch.nn.MultiheadAttention whose tokens each use a few of its heads.

    Arguments and parameters have the names they have there, so a checkpoint of that class loads with strict=False; batch_first is
    True unless told otherwise. Added: num_kv_heads (grouped queries), and those of Router. Weights of the attention are not
    computed unless need_weights asks for them."""

    def __init__(self, embed_dim: int, num_heads: int, *, shared_heads: int, top_k: int, router: str = "two-stage",
                 form: str = "authors", num_kv_heads: int | None = None, dropout: float = 0.0, bias: bool = True,
                 kdim: int | None = None, vdim: int | None = None, batch_first: bool = True,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} must be a multiple of num_heads {num_heads}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        if num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {num_heads} must be a multiple of num_kv_heads {num_kv_heads}")
        self.dropout, self.batch_first = dropout, batch_first
        self.kdim, self.vdim = kdim or embed_dim, vdim or embed_dim
        factory = {"device": device, "dtype": dtype}
        kv_size = self.num_kv_heads * self.head_dim
        self._one_matrix = self.kdim == self.vdim == embed_dim
        if self._one_matrix:
            self.in_proj_weight = nn.Parameter(torch.empty(embed_dim + 2 * kv_size, embed_dim, **factory))
        else:
            self.q_proj_weight = nn.Parameter(torch.empty(embed_dim, embed_dim, **factory))
            self.k_proj_weight = nn.Parameter(torch.empty(kv_size, self.kdim, **factory))
            self.v_proj_weight = nn.Parameter(torch.empty(kv_size, self.vdim, **factory))
        if bias:
            self.in_proj_bias = nn.Parameter(torch.zeros(embed_dim + 2 * kv_size, **factory))
        else:
            self.register_parameter("in_proj_bias", None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **factory)
        self.router = Router(embed_dim, num_heads, shared_heads, top_k, router=router, form=form, **factory)
        for name, weight in self.named_parameters(recurse=False):
            if name.endswith("weight"):
                nn.init.xavier_uniform_(weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    @classmethod
    def from_dense(cls, dense: nn.MultiheadAttention, *, shared_heads: int, top_k: int, router: str = "two-stage",
                   form: str = "authors") -> MoHAttention:
        """The same weights, copied; the router is new."""
        if dense.bias_k is not None or dense.add_zero_attn:
            raise ValueError("MoHAttention has no add_bias_kv and no add_zero_attn")
        like = dense.out_proj.weight
        layer = cls(dense.embed_dim, dense.num_heads, shared_heads=shared_heads, top_k=top_k, router=router, form=form,
                    dropout=dense.dropout, bias=dense.in_proj_bias is not None, kdim=dense.kdim, vdim=dense.vdim,
                    batch_first=dense.batch_first, device=like.device, dtype=like.dtype)
        layer.load_state_dict(dense.state_dict(), strict=False)
        return layer.train(dense.training)

    def _weights(self) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        kv_size = self.num_kv_heads * self.head_dim
        sizes = [self.embed_dim, kv_size, kv_size]
        weights = self.in_proj_weight.split(sizes) if self._one_matrix else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        return weights, (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(sizes)

    def forward(self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, key_padding_mask: Tensor | None = None,
                need_weights: bool = False, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
                is_causal: bool = False) -> tuple[Tensor, Tensor | None]:
        """Masks mean what they do for torch.nn.MultiheadAttention: bool ones are true where a key is hidden, others are added
        to the scores. is_causal alone is enough: attn_mask may be left out. Key and value default to query, value to key."""
        key = query if key is None else key
        value = key if value is None else value
        single = query.dim() == 2
        if single:
            query, key, value = (t.unsqueeze(0 if self.batch_first else 1) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        weights, biases = self._weights()
        heads = [nn.functional.linear(x, w, b).unflatten(-1, (-1, self.head_dim)) for x, w, b in zip((query, key, value), weights, biases)]
        gates = self.router(query, heads[0]).gates
        mask = self._mask(heads[0], key.shape[1], key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        shown = None
        if need_weights:
            out, shown = self._with_weights(*heads, gates, mask, is_causal, dropout)
            shown = shown.mean(1) if average_attn_weights else shown
        else:
            out = attend(*heads, gates, mask=mask, causal=is_causal, dropout=dropout)
        out = self.out_proj(out.flatten(-2))
        out = out if self.batch_first else out.transpose(0, 1)
        if single:
            out, shown = out.squeeze(0 if self.batch_first else 1), None if shown is None else shown.squeeze(0)
        return out, shown

    def _mask(self, query: Tensor, keys: int, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Both masks as one for attend(): [.., T, S]."""
        def added(hidden: Tensor) -> Tensor:
            return _added(~hidden if hidden.dtype == torch.bool else hidden, query.dtype)

        total = None
        if mask is not None:
            total = added(mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 else mask)
        if padding is not None:
            row = added(padding)[:, None, None, :]
            total = row if total is None else total + row
        return total

    def _with_weights(self, query: Tensor, key: Tensor, value: Tensor, gates: Tensor, mask: Tensor | None, causal: bool,
                      dropout: float) -> tuple[Tensor, Tensor]:
        groups = self.num_heads // self.num_kv_heads
        key, value = (t.repeat_interleave(groups, 2) for t in (key, value))
        scores = torch.einsum("bthd,bshd->bhts", query, key) / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores + mask
        if causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(scores.shape[-1] - scores.shape[-2])
            scores = scores.masked_fill(~seen, -math.inf)
        weights = nn.functional.dropout(torch.softmax(scores, -1), dropout, self.training)
        out = torch.einsum("bhts,bshd->bthd", weights, value)
        return (out * gates.unsqueeze(-1)).to(out.dtype), weights
