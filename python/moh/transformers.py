"""Folders of `moh convert --export hf` as models that transformers knows, without trust_remote_code and without the copy of the
modeling file that lies in the folder."""

from __future__ import annotations

import importlib
import importlib.util
import types

from ._families import FAMILIES

__all__ = ["FAMILIES", "modeling", "register"]


def modeling(family: str) -> types.ModuleType:
    """The module with MohConfig, MohModel and MohForCausalLM of a family."""
    if family not in FAMILIES:
        raise ValueError(f"unknown family `{family}`; known: {', '.join(FAMILIES)}")
    return importlib.import_module(f"{__package__}.modeling_moh_{family}")


def register(*families: str) -> None:
    """AutoConfig, AutoModel and AutoModelForCausalLM know the exported models of these families (all, unless named) then."""
    if importlib.util.find_spec("transformers") is None:
        raise ImportError("moh.transformers needs the package transformers: pip install transformers")
    import transformers

    for family in families or FAMILIES:
        module = modeling(family)
        transformers.AutoConfig.register(module.MohConfig.model_type, module.MohConfig, exist_ok=True)
        transformers.AutoModel.register(module.MohConfig, module.MohModel, exist_ok=True)
        transformers.AutoModelForCausalLM.register(module.MohConfig, module.MohForCausalLM, exist_ok=True)
