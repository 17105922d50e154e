"""Mixture-of-Head attention in models of timm: its `Attention`, every token using a few of its heads.

    model = timm.create_model("vit_tiny_patch16_224", pretrained=True)
    moh.timm.convert(model, shared_heads=1, top_k=1)      # weights stay, routers are new
"""

from __future__ import annotations

from torch import Tensor, nn
from timm.layers.attention import Attention

from .nn import Router, attend


class MoHAttention(Attention):
    """timm's Attention, same arguments and parameters, with a router."""

    def __init__(self, dim: int, num_heads: int = 8, *, shared_heads: int, top_k: int, router: str = "two-stage",
                 form: str = "authors", **options) -> None:
        super().__init__(dim, num_heads, **options)
        self._add_router(dim, shared_heads, top_k, router, form)

    def _add_router(self, dim: int, shared_heads: int, top_k: int, router: str, form: str) -> None:
        weight = self.qkv.weight
        self.router = Router(dim, self.num_heads, shared_heads, top_k, router=router, form=form, device=weight.device,
                             dtype=weight.dtype)

    @classmethod
    def from_dense(cls, dense: Attention, *, shared_heads: int, top_k: int, router: str = "two-stage", form: str = "authors") -> MoHAttention:
        """A layer that shares the dense one's modules; the router is new."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.__dict__.update({k: v for k, v in dense.__dict__.items() if not k.startswith("_")})
        for name, module in dense.named_children():
            setattr(layer, name, module)
        if not hasattr(layer, "gate"):
            layer.gate = None
        layer._add_router(dense.qkv.in_features, shared_heads, top_k, router, form)
        return layer.train(dense.training)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)
        gates = self.router(x, query).gates
        query, key = self.q_norm(query), self.k_norm(key)
        dropout = self.attn_drop.p if self.training else 0.0
        out = attend(query, key, value, gates, mask=attn_mask, causal=is_causal, dropout=dropout, scale=self.scale)
        out = self.norm(out.flatten(-2))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))


def convert(model: nn.Module, *, shared_heads: int, top_k: int, router: str = "two-stage", form: str = "authors") -> int:
    """Replaces every timm Attention inside; returns how many there were."""
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children() if type(child) is Attention]
    for parent, name, child in found:
        setattr(parent, name, MoHAttention.from_dense(child, shared_heads=shared_heads, top_k=top_k, router=router, form=form))
    if not found:
        raise ValueError("this model has no timm Attention to convert")
    return len(found)
