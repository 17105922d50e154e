"""Mixture-of-Head attention for PyTorch: every token uses only the heads that a router chose for it.

    moh.nn.MoHAttention            a layer, called like torch.nn.MultiheadAttention
    moh.head_attention             the operator below it; heads whose gate is zero are not computed
    moh.transformers.register()    folders of `moh convert --export hf` load without trust_remote_code
    moh.available()                what works here, and why the rest does not
"""

from . import nn
from ._library import available
from .ops import head_attention

__version__ = "0.1.0"
__all__ = ["available", "head_attention", "nn"]


def __getattr__(name: str):
    if name in ("diffusers", "sharding", "timm", "transformers"):  # need packages that not everybody has
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
