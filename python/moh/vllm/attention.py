"""An attention backend of vLLM: skipped heads are not computed, on the CPU, over pages [P, Hkv, page, 2 D] as vLLM lays them
out, each key beside its value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention.attention import get_attention_context
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionMetadataBuilder, AttentionType, CommonAttentionMetadata
from vllm.v1.kv_cache_interface import KVCacheLayout

from .. import ops  # noqa: F401  (defines torch.ops.moh.head_attention_paged)


@dataclass
class MohMetadata:
    """One step: rows of all sequences, one after the other, and where their keys lie."""

    rows: int
    sequences: Tensor  # [N, 3]: first row, rows, keys
    pages: Tensor  # [N, most pages of a sequence]
    causal: bool


class MohMetadataBuilder(AttentionMetadataBuilder[MohMetadata]):
    def __init__(self, kv_cache_spec, layer_names, vllm_config, device) -> None:  # abstract there
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False) -> MohMetadata:
        common = common_attn_metadata
        if isinstance(common.causal, Tensor):
            raise NotImplementedError("moh: sequences that are causal and others in one step")
        starts = common.query_start_loc[: common.num_reqs + 1].long()
        sequences = torch.stack([starts[:-1], starts.diff(), common.seq_lens[: common.num_reqs].long()], 1)
        pages = common.block_table_tensor[: common.num_reqs].int().contiguous()
        return MohMetadata(common.num_actual_tokens, sequences, pages, common.causal)


class MohImpl(AttentionImpl):
    def __init__(self, num_heads: int, head_size: int, scale: float, num_kv_heads: int, alibi_slopes: list[float] | None,
                 sliding_window: int | None, kv_cache_dtype: str, logits_soft_cap: float | None = None,
                 attn_type: str = AttentionType.DECODER, kv_sharing_target_layer_name: str | None = None) -> None:
        if alibi_slopes is not None or attn_type != AttentionType.DECODER or kv_sharing_target_layer_name is not None:
            raise NotImplementedError("moh: a decoder with keys of its own and without ALiBi is what this attention is for")
        if kv_cache_dtype.startswith("fp8"):
            raise NotImplementedError(f"moh: keys and values cannot be stored as {kv_cache_dtype}; leave --kv-cache-dtype away")
        self.head_size, self.scale, self.window, self.soft_cap = head_size, float(scale), sliding_window or 0, logits_soft_cap or 0.0
        self.num_heads, self.num_kv_heads, self.kv_cache_dtype = num_heads, num_kv_heads, kv_cache_dtype

    def views(self, pool: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [P, page, Hkv, D] of a pool [P, Hkv, page, 2 D]."""
        return pool.transpose(1, 2).split(self.head_size, -1)

    def forward(self, layer, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, attn_metadata: MohMetadata | None,
                output: Tensor, gates: Tensor, slots: Tensor | None) -> None:
        """query and output [R, H, D], gates [R, H]; key and value [R, Hkv, D] go to their slots first."""
        if attn_metadata is None:  # warming up
            output.zero_()
            return
        keys, values = self.views(kv_cache)
        rows, page = attn_metadata.rows, keys.shape[1]
        if slots is not None:
            place, offset = slots[:rows] // page, slots[:rows] % page
            keys[place, offset] = key[:rows]
            values[place, offset] = value[:rows]
        output[:rows] = torch.ops.moh.head_attention_paged(
            query[:rows], keys, values, gates[:rows], attn_metadata.sequences, attn_metadata.pages, causal=attn_metadata.causal,
            window=self.window if attn_metadata.causal else 0, soft_cap=self.soft_cap, scale=self.scale)


class MohBackend(AttentionBackend):
    supported_dtypes = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes = ["auto", "float16", "bfloat16"]
    forward_includes_kv_cache_update = True

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.LBHNC,)

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"  # vLLM has a list of names

    @staticmethod
    def get_impl_cls() -> type[MohImpl]:
        return MohImpl

    @staticmethod
    def get_builder_cls() -> type[MohMetadataBuilder]:
        return MohMetadataBuilder


def moh_attention(query: Tensor, key: Tensor, value: Tensor, gates: Tensor, output: Tensor, layer_name: str) -> None:
    """One node of the compiled graph; finds the step's pages as vLLM's own attention does."""
    metadata, layer, pool, slots = get_attention_context(layer_name)
    layer.impl.forward(layer, query, key, value, pool, metadata, output, gates, slots)


direct_register_custom_op("moh_attention", moh_attention, mutates_args=["output"])


class MohAttention(Attention):
    """vLLM's attention layer, which has the cache of keys and values, called with gates."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, attn_backend=MohBackend, **options)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, gates: Tensor) -> Tensor:
        """[R, H, D] from query [R, H, D], key and value [R, Hkv, D] and gates [R, H]."""
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        torch.ops.vllm.moh_attention(query, key, value, gates, output, self.layer_name)
        return output
