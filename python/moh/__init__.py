"""Mixture-of-Head attention for PyTorch: every token uses only the heads that a router chose for it.

    moh.nn.MoHAttention            a layer, called like torch.nn.MultiheadAttention
    moh.head_attention             the operator below it; heads whose gate is zero are not computed
    moh.transformers.register()    folders of `moh convert --export hf` load without trust_remote_code
    moh.vllm                       vLLM finds these folders' models in it by itself
    moh.available()                what works here, and why the rest does not
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from ._library import available  # before all others: it says if this torch is too old
from . import _families, nn
from .ops import head_attention

__version__ = "0.1.0"
__all__ = ["available", "head_attention", "nn"]

if TYPE_CHECKING:
    from . import diffusers, sharding, timm, transformers, vllm
else:  # these need packages that not everybody has

    def __getattr__(name: str) -> ModuleType:
        if name in ("diffusers", "sharding", "timm", "transformers", "vllm"):
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
