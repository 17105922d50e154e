"""A Mixture-of-Head model for transformers, written by `moh convert --export hf`.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

It is the dense model of its family with another attention: every token has a gate for every head, and what a head gives is
multiplied by it. The object `moh` of config.json says how the gates come about. The gates belong to the module's own
forward pass, so they hold under every attention implementation, cache, adapter, quantizer and number of threads. After

    torch.ops.load_library("libmoh.so")

heads whose gate is zero are not computed on a CPU (torch.ops.moh.head_attention, in place of "sdpa"); without it every head
is computed, with the same result.
"""

from typing import Optional

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as family
from transformers.models.llama.configuration_llama import LlamaConfig as FamilyConfig


class MohConfig(FamilyConfig):
    model_type = "moh_llama"
    # A rank of tensor parallelism would see a part of the heads, among which no router can choose: attention is replicated.
    base_model_tp_plan = {
        name: style for name, style in (getattr(FamilyConfig, "base_model_tp_plan", None) or {}).items() if "self_attn" not in name
    }
    moh: Optional[dict] = None  # router, select, shared_heads, top_k, gates, ...


def wide(x):
    return x if x.dtype == torch.float64 else x.float()


class RouterLinear(nn.Linear):
    """Products in fp32 whatever the model's type, also under autocast: rounding would choose other heads."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else wide(self.bias)
            return nn.functional.linear(wide(x), wide(self.weight), bias)


def selected(scores, top_k):
    """1 for the top_k largest of the last dimension, 0 for the others; ties go to the lower index."""
    chosen = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :top_k]
    return torch.zeros_like(scores).scatter(-1, chosen, 1.0)


class Router:
    """Gates of one layer, [..., choices] in the router's own order, whose first choices are shared. A choice is a head, or
    all query heads of a KV head. A router holds numbers only; its matrices are modules of the attention that asks it. A new
    kind is a subclass and a line of ROUTERS."""

    def __init__(self, config, layer):
        moh, heads = config.moh, config.num_attention_heads
        if moh.get("select", "head") not in ("head", "kv-group"):
            raise ValueError(f"this file does not know `select` = {moh['select']}, only head and kv-group")
        self.by_group = moh.get("select", "head") == "kv-group"
        self.group = heads // config.num_key_value_heads if self.by_group else 1
        self.choices = heads // self.group
        counts = (n[layer] if isinstance(n, (list, tuple)) else n for n in (moh["shared_heads"], moh.get("top_k", 0)))
        self.shared, self.top_k = (n // self.group for n in counts)
        order = (moh.get("head_order") or {layer: range(heads)})[layer]
        self.order = [head // self.group for head in order[:: self.group]]
        self.places = sorted(range(self.choices), key=self.order.__getitem__)
        self.config = moh

    def linears(self):
        """Name and number of rows of each matrix of hidden_size columns."""
        return {}

    def modules(self, hidden_size):
        return {name: RouterLinear(hidden_size, rows, bias=False) for name, rows in self.linears().items()}

    def choose(self, attention, x, query, positions):
        raise NotImplementedError

    def gates(self, attention, x, query, positions):
        """[..., heads] in the model's order, from the attention's input x and its query [..., heads * head_dim] before
        rotary embedding and norms; `positions`: of the tokens in their sequences, where known."""
        gates = self.choose(attention, x, query, positions)
        if self.places != list(range(self.choices)):
            gates = gates[..., self.places]
        return gates.repeat_interleave(self.group, -1) if self.group > 1 else gates

    def compensate(self, attention, gates, output):
        """What skipped heads leave behind is added to the attention's output here."""
        return output


class NormRouter(Router):
    """No parameters: the heads with the longest query, 0 or 1."""

    def choose(self, attention, x, query, positions):
        query = query.unflatten(-1, (self.choices, -1))
        if self.order != list(range(self.choices)):
            query = query[..., self.order, :]
        norms = torch.linalg.vector_norm(wide(query), dim=-1)[..., self.shared :]
        scores = torch.zeros_like(norms)
        if norms.shape[-1] > 1:
            # Two norms always differ by the same multiple of their deviation: few groups are divided by their mean.
            few = self.by_group and norms.shape[-1] <= 2
            divisor = norms.mean(-1, keepdim=True) if few else norms.std(-1, keepdim=True)
            scores = torch.where(divisor > 0, norms / torch.where(divisor > 0, divisor, 1.0), scores)
        probabilities = torch.softmax(scores, -1)
        routed = selected(scores, self.top_k)
        straight_through = self.config.get("straight_through", "selected")
        if straight_through != "none":  # an exact zero that carries the gradient
            through = probabilities - probabilities.detach()
            routed = routed + (through if straight_through == "all" else through * routed)
        return nn.functional.pad(routed, (self.shared, 0), value=1.0)


class TwoStageRouter(Router):
    """Trained: softmax within the shared and within the routed heads, times the weight of the kind."""

    def linears(self):
        sizes = {"wg": self.choices - self.shared if self.top_k > 0 else 0, "wg_1": self.shared if self.shared > 1 else 0,
                 "wg_0": 2 if self.shared > 0 and self.top_k > 0 else 0}
        return {name: rows for name, rows in sizes.items() if rows}

    def choose(self, attention, x, query, positions):
        authors = self.config.get("gates", "paper") == "authors"
        if self.shared > 1:
            gates = torch.softmax(wide(attention.wg_1(x)), -1) * (self.shared if authors else 1.0)
        else:
            gates = torch.ones(*x.shape[:-1], self.shared, device=x.device)
        if self.top_k == 0:
            return nn.functional.pad(gates, (0, self.choices - self.shared))
        probabilities = torch.softmax(wide(attention.wg(x)), -1)
        routed = probabilities * selected(probabilities, self.top_k)
        if authors:
            routed = routed / routed.sum(-1, keepdim=True).clamp_min(torch.finfo(routed.dtype).eps) * self.top_k
        if self.shared == 0:
            return routed
        kind = torch.softmax(wide(attention.wg_0(x)), -1) * (2.0 if authors else 1.0)
        return torch.cat([gates * kind[..., :1], routed * kind[..., 1:]], -1)


class LinearRouter(Router):
    """A score of the layer's input for every choice: the best top_k, or every one above the layer's threshold. Choices that
    are left out may add their mean output."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.threshold = None
        if self.config.get("choose", "top-k") == "threshold":
            table, activated = self.config["thresholds"][layer], self.config["activated"]
            place = activated * (len(table) - 1)
            way = place - int(place)
            ends = table[int(place)], table[min(int(place) + 1, len(table) - 1)]
            self.threshold = float("-inf") if activated >= 1 else (1 - way) * ends[0] + way * ends[1]

    def modules(self, hidden_size):
        modules = {"wg": RouterLinear(hidden_size, self.choices)}
        if self.config.get("mean_heads", False):
            modules["head_mean"] = nn.Linear(self.choices, hidden_size)
        return modules

    def choose(self, attention, x, query, positions):
        routed = wide(attention.wg(x))[..., self.order][..., self.shared :]
        finite = self.threshold is not None and self.threshold != float("-inf")
        weights = torch.sigmoid(routed - self.threshold if finite else routed)
        chosen = selected(routed, self.top_k) if self.threshold is None else (routed > self.threshold).to(routed.dtype)
        if (leading := self.config.get("leading_tokens", 0)) > 0:
            if positions is None:
                raise ValueError("the first tokens of a sequence use all heads: attention needs `position_ids`")
            chosen = torch.where((positions < leading).unsqueeze(-1), 1.0, chosen)
        straight_through = self.config.get("straight_through", "selected")
        if self.config.get("weighted", False):
            gates = chosen * (weights.detach() if straight_through == "none" else weights)
        elif straight_through == "none":
            gates = chosen
        else:
            through = weights - weights.detach()
            gates = chosen + (through if straight_through == "all" else through * chosen)
        return nn.functional.pad(gates, (self.shared, 0), value=1.0)

    def compensate(self, attention, gates, output):
        if not hasattr(attention, "head_mean"):
            return output
        left_out = 1 - gates[..., :: self.group]
        return output + attention.head_mean(left_out.to(output.dtype)).to(output.dtype)


ROUTERS = {"norm": NormRouter, "two-stage": TwoStageRouter, "linear": LinearRouter}


def router_of(config, layer):
    if not config.moh:
        raise ValueError("config.json has no object `moh`")
    kind = config.moh.get("router")
    if kind not in ROUTERS:
        raise ValueError(f"this file does not know the router `{kind}`, only {', '.join(ROUTERS)}; export the model again")
    return ROUTERS[kind](config, layer)


class MohAttention(family.LlamaAttention):
    """The family's attention with gates. What families do differently is read off the attributes that theirs sets."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.router = router_of(config, layer_idx)
        for name, module in self.router.modules(config.hidden_size).items():
            setattr(self, name, module)

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, cache=None, past_key_values=None, **kwargs):
        tokens = hidden_states.shape[:-1]
        if hasattr(self, "qkv_proj"):
            kv_size = self.config.num_key_value_heads * self.head_dim
            sizes = [self.config.num_attention_heads * self.head_dim, kv_size, kv_size]
            query, key, value = self.qkv_proj(hidden_states).split(sizes, -1)
        else:
            query, key, value = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        if query.shape[-1] != self.config.num_attention_heads * self.head_dim:
            raise ValueError("a MoH router needs all heads of a token: this model's attention cannot be split over devices")
        gates = self.router.gates(self, hidden_states, query, kwargs.get("position_ids"))

        whole_rows = FamilyConfig.model_type.startswith("olmo")  # the others' norms are over single heads
        if hasattr(self, "q_norm") and whole_rows:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (states.view(*tokens, -1, self.head_dim) for states in (query, key, value))
        if hasattr(self, "q_norm") and not whole_rows:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        if getattr(self, "use_rope", True):
            query, key = family.apply_rotary_pos_emb(query, key, *position_embeddings)
        cache = past_key_values if cache is None else cache
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)  # a paged cache finds its places in kwargs

        options = {"dropout": self.attention_dropout if self.training else 0.0}
        if hasattr(self, "sliding_window") or hasattr(FamilyConfig, "sliding_window"):
            options["sliding_window"] = getattr(self, "sliding_window", getattr(self.config, "sliding_window", None))
        if getattr(self, "attn_logit_softcapping", None) is not None:
            options["softcap"] = self.attn_logit_softcapping
        weights = None
        if self.can_skip(query, attention_mask, gates, options):
            output = self.skip(query, key, value, attention_mask, gates, kwargs.get("is_causal"))
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, family.eager_attention_forward)
            # vLLM reads `scaling=` in this source.
            output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **options, **kwargs)
            output = output.reshape(*tokens, -1, self.head_dim)
            output = (output * gates.unsqueeze(-1)).to(output.dtype)
        output = self.o_proj(output.reshape(*tokens, -1).contiguous())
        return self.router.compensate(self, gates, output), weights

    def can_skip(self, query, mask, gates, options):
        """Whether the operator gives what "sdpa" would."""
        if self.config._attn_implementation != "sdpa" or not hasattr(torch.ops.moh, "head_attention"):
            return False
        every_gradient = gates.requires_grad and self.config.moh.get("straight_through") == "all"  # of skipped heads too
        plain = query.device.type == "cpu" and (mask is None or isinstance(mask, torch.Tensor))
        return plain and not every_gradient and options["dropout"] == 0 and "softcap" not in options

    def skip(self, query, key, value, mask, gates, is_causal):
        queries, bias = query.shape[2], mask
        causal = mask is None and queries > 1 and (self.is_causal if is_causal is None else is_causal)
        if mask is not None and mask.dtype == torch.bool:
            bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
        if causal and queries < key.shape[2]:  # an empty static cache: only its first places are filled
            key, value = key[:, :, :queries], value[:, :, :queries]
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        return torch.ops.moh.head_attention(query, key, value, gates, bias=bias, causal=causal, scale=self.scaling)


class MohModel(family.LlamaModel):
    config_class = MohConfig
    _keep_in_fp32_modules = ["wg", "wg_0", "wg_1"]  # quantizers leave these as they are

    def __init__(self, config):
        super().__init__(config)
        for index, layer in enumerate(self.layers):
            layer.self_attn = MohAttention(config, index)
        self.post_init()


class MohForCausalLM(family.LlamaForCausalLM):
    config_class = MohConfig
    _keep_in_fp32_modules = MohModel._keep_in_fp32_modules

    def __init__(self, config):
        super().__init__(config)
        self.model = MohModel(config)
        self.post_init()
