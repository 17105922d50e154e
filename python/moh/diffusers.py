"""Mixture-of-Head attention in models of diffusers, as an attention processor.

    model = DiTTransformer2DModel(...)
    moh.diffusers.convert(model, shared_heads=4, top_k=8)     # weights stay, routers are new modules of the model
"""

from __future__ import annotations

from torch import Tensor, nn

from .nn import Router, attend


class MoHAttnProcessor(nn.Module):
    """Goes to Attention.set_processor; its router becomes part of the model."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    def forward(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                attention_mask: Tensor | None = None, temb: Tensor | None = None) -> Tensor:
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, context.shape[1], context.shape[0])
            attention_mask = mask.view(context.shape[0], attn.heads, -1, mask.shape[-1])

        projected = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (rows.unflatten(-1, (attn.heads, -1)) for rows in projected)
        gates = self.router(hidden_states, query).gates
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        out = attend(query, key, value, gates, mask=attention_mask)
        out = attn.to_out[1](attn.to_out[0](out.flatten(-2).to(projected[0].dtype)))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        return (out + residual if attn.residual_connection else out) / attn.rescale_output_factor


def convert(model: nn.Module, *, shared_heads: int, top_k: int, router: str = "two-stage", form: str = "authors") -> int:
    """Gives every diffusers Attention inside a router; returns how many there were."""
    from diffusers.models.attention_processor import Attention

    found = [module for module in model.modules() if isinstance(module, Attention)]
    for module in found:
        if module.to_q is None or module.added_kv_proj_dim is not None:
            raise ValueError("attention with added key and value projections is not known here")
        weight = module.to_q.weight
        module.set_processor(MoHAttnProcessor(Router(module.to_q.in_features, module.heads, shared_heads, top_k, router=router,
                                                     form=form, device=weight.device, dtype=weight.dtype)))
    if not found:
        raise ValueError("this model has no diffusers Attention to convert")
    return len(found)


