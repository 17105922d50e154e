"""A Mixture-of-Head model for transformers, written by `moh convert --export hf`.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

It is the dense model of its family with one change: every token has a gate for every attention head, and a head's output
is multiplied by it. The object `moh` of config.json says how the gates come about. After

    torch.ops.load_library("libmoh.so")

heads whose gate is zero are not computed at all (torch.ops.moh.head_attention); without it every head is computed, with the
same result.
"""

from functools import partial
from typing import Optional

import torch
from torch import nn
from transformers import LlamaConfig as FamilyConfig
from transformers import LlamaForCausalLM as Family
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface


class MohConfig(FamilyConfig):
    model_type = "moh_llama"
    moh: Optional[dict] = None  # router, select, shared_heads, top_k, gates, ...


def softmax_of(x, weight):
    return torch.softmax(x.float() @ weight.float().T, -1)


def select(probabilities, top_k):
    """1 for the top_k largest of the last dimension, 0 for the others; ties go to the lower index."""
    chosen = torch.sort(probabilities, dim=-1, descending=True, stable=True).indices[..., :top_k]
    return torch.zeros_like(probabilities).scatter(-1, chosen, 1.0)


def norm_gates(query, shared, top_k, few_groups, straight_through):
    """The parameter-free router: heads with the longest query (before RoPE and before the family's own query norm), 0 or 1.
    Two norms always differ by the same multiple of their standard deviation: few groups are divided by their mean."""
    norms = query.float().norm(dim=-1)[..., shared:]
    scores = torch.zeros_like(norms)
    if norms.shape[-1] > 1:
        divisor = norms.mean(-1, keepdim=True) if few_groups else norms.std(-1, keepdim=True)
        scores = torch.where(divisor > 0, norms / torch.where(divisor > 0, divisor, 1.0), scores)
    probabilities = torch.softmax(scores, -1)
    routed = select(scores, top_k)
    if straight_through != "none":  # an exact zero that carries the gradient
        through = probabilities - probabilities.detach()
        routed = routed + (through if straight_through == "all" else through * routed)
    return torch.cat([torch.ones_like(query[..., :shared, 0], dtype=routed.dtype), routed], -1)


def two_stage_gates(x, attention, choices, shared, top_k, form):
    """The trained router: softmax within the shared and within the routed heads, times the weight of the kind."""
    scale_shared, scale_routed, scale_kind = (shared, top_k, 2.0) if form == "authors" else (1.0, None, 1.0)
    gates = torch.ones(*x.shape[:-1], shared, device=x.device)
    if shared > 1:
        gates = softmax_of(x, attention.wg_1.weight) * scale_shared
    if top_k == 0:
        return nn.functional.pad(gates, (0, choices - shared))
    probabilities = softmax_of(x, attention.wg.weight)
    routed = probabilities * select(probabilities, top_k)
    if scale_routed is not None:
        routed = routed / routed.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).eps) * scale_routed
    if shared == 0:
        return routed
    kind = softmax_of(x, attention.wg_0.weight) * scale_kind
    return torch.cat([gates * kind[..., :1], routed * kind[..., 1:]], -1)


def heads_per_choice(config):
    """Heads that the router takes or leaves together: one, or all query heads of a KV head."""
    by_group = config.moh.get("select", "head") == "kv-group"
    return config.num_attention_heads // config.num_key_value_heads if by_group else 1


def set_gates(attention, config, order, shared, top_k, projection, inputs, output):
    """Hook on q_proj, which sees both what the routers want: the layer's input and its query. Choices (heads, or groups of
    them) are counted in the router's order, whose first ones are shared."""
    moh, group = config.moh, heads_per_choice(config)
    choices = config.num_attention_heads // group
    if moh["router"] == "norm":
        few_groups = moh.get("select", "head") == "kv-group" and choices - shared <= 2
        query = output.unflatten(-1, (choices, -1))[..., order, :]
        gates = norm_gates(query, shared, top_k, few_groups, moh.get("straight_through", "selected"))
    else:
        gates = two_stage_gates(inputs[0], attention, choices, shared, top_k, moh.get("gates", "paper"))
    places = sorted(range(choices), key=order.__getitem__)
    attention.moh_gates = gates[..., places].repeat_interleave(group, -1)


def moh_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    gates = module.moh_gates
    every_gradient = gates.requires_grad and module.config.moh.get("straight_through") == "all"  # of skipped heads too
    if not hasattr(torch.ops.moh, "head_attention") or dropout > 0 or every_gradient:
        dense = ALL_ATTENTION_FUNCTIONS["sdpa"]
        out, _ = dense(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        return (out * gates.unsqueeze(-1)).to(out.dtype), None
    tokens, bias = query.shape[2], None
    if attention_mask is not None:
        bias = attention_mask
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill(~bias, float("-inf"))
    elif 1 < tokens < key.shape[2]:  # an empty static cache: only its first places are filled
        key, value = key[:, :, :tokens], value[:, :, :tokens]
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    causal = attention_mask is None and tokens > 1
    return torch.ops.moh.head_attention(query, key, value, gates, bias=bias, causal=causal, scale=scaling), None


AttentionInterface.register("moh", moh_attention)
AttentionMaskInterface.register("moh", sdpa_mask)


class MohForCausalLM(Family):
    config_class = MohConfig

    def __init__(self, config):
        super().__init__(config)
        moh = config.moh
        if moh is None:
            raise ValueError("config.json has no object `moh`")
        if moh["router"] not in ("norm", "two-stage") or moh.get("select", "head") not in ("head", "kv-group"):
            raise ValueError(f"this file does not know the router {moh['router']} with select {moh.get('select')}")
        group = heads_per_choice(config)
        choices, numbered = config.num_attention_heads // group, range(config.num_attention_heads)
        config._attn_implementation = "moh"
        for index, layer in enumerate(self.model.layers):
            attention = layer.self_attn
            counts = (n[index] if isinstance(n, (list, tuple)) else n for n in (moh["shared_heads"], moh["top_k"]))
            shared, top_k = (n // group for n in counts)
            order = [head // group for head in (moh.get("head_order") or {index: numbered})[index][::group]]
            if moh["router"] == "two-stage":
                sizes = {"wg": choices - shared if top_k > 0 else 0, "wg_1": shared if shared > 1 else 0,
                         "wg_0": 2 if shared > 0 and top_k > 0 else 0}
                for name, rows in sizes.items():
                    if rows:
                        setattr(attention, name, nn.Linear(config.hidden_size, rows, bias=False))
            attention.q_proj.register_forward_hook(partial(set_gates, attention, config, order, shared, top_k))
