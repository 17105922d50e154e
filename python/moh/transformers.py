"""Folders of `moh convert --export hf` as models that transformers knows, without trust_remote_code and without the copy of the
modeling file that lies in the folder."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import types

# transformers' name of the model and prefix of its classes, the rows of moh/models/llama_family.cpp.
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma", "smollm3": "SmolLM3"}


def _source() -> str:
    here = pathlib.Path(__file__).resolve().parent
    for path in (here / "modeling_moh.py", here.parents[1] / "moh" / "models" / "modeling_moh.py"):  # installed; source tree
        if path.exists():
            return path.read_text()
    raise FileNotFoundError(f"modeling_moh.py is missing beside {__file__}; install the package again")


def modeling(family: str) -> types.ModuleType:
    """The module with MohConfig, MohModel and MohForCausalLM of a family."""
    if family not in FAMILIES:
        raise ValueError(f"unknown family `{family}`; known: {', '.join(FAMILIES)}")
    name = f"{__package__}.modeling_moh_{family}"
    if name not in sys.modules:
        module = types.ModuleType(name, f"modeling_moh.py for {FAMILIES[family]}")
        text = _source().replace("Llama", FAMILIES[family]).replace("llama", family)
        sys.modules[name] = module
        try:
            exec(compile(text, f"<{name}>", "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


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
