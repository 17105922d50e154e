"""A program as type checkers see it: right uses, and wrong ones that must be errors. Checked by

    mypy --strict tests/python/typed_program.py        # where the package is installed
"""

import torch
from torch import Tensor, nn

import moh


def use(model: nn.Module, x: Tensor, gates: Tensor) -> dict[str, str]:
    layer = moh.nn.MoHAttention(64, 4, shared_heads=1, top_k=2, router="norm", dtype=torch.float32)
    out, weights = layer(x, is_causal=True)
    assert weights is None
    with moh.nn.balance_losses() as losses:
        total: Tensor = out.sum() + sum(losses, torch.zeros(()))
    total.backward()  # type: ignore[no-untyped-call]
    attended: Tensor = moh.head_attention(x, x, x, gates, causal=True, bias=None, window=4)
    converted: int = moh.timm.convert(model, shared_heads=1, top_k=1) + moh.diffusers.convert(model, shared_heads=1, top_k=1)
    moh.transformers.register("llama")
    moh.sharding.register()
    print(attended, converted, moh.vllm.VERSIONS)
    return moh.available()


def misuse(x: Tensor) -> None:
    moh.head_attention(x, x, x)  # type: ignore[call-arg]
    moh.head_attention(x, x, x, x, window="wide")  # type: ignore[arg-type]
    moh.nn.MoHAttention(64, 4, shared_heads=1)  # type: ignore[call-arg]
    moh.transformers.register(3)  # type: ignore[arg-type]
    moh.available(1)  # type: ignore[call-arg]
    moh.no_such_part  # type: ignore[attr-defined]
