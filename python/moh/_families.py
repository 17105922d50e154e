"""modeling_moh.py for every family as a module of this package, moh.modeling_moh_llama and so on: what `moh convert --export hf`
writes into a folder. They are imported by name, so their classes can be pickled and their sources read."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import sys

# transformers' name of the model and prefix of its classes, the rows of moh/models/llama_family.cpp that can be exported.
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma", "smollm3": "SmolLM3",
            "gemma2": "Gemma2", "gemma3_text": "Gemma3", "olmo2": "Olmo2", "granite": "Granite"}
_CONFIGS = {"gemma3_text": "Gemma3TextConfig"}  # where it is not the prefix with Config
_PREFIX = f"{__package__}.modeling_moh_"


def _template() -> str:
    here = pathlib.Path(__file__).resolve().parent
    for path in (here / "modeling_moh.py", here.parents[1] / "moh" / "models" / "modeling_moh.py"):  # installed; source tree
        if path.exists():
            return path.read_text()
    raise ImportError(f"modeling_moh.py is missing beside {__file__}; install the package again")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.removeprefix(_PREFIX) in FAMILIES:
            return importlib.util.spec_from_loader(fullname, self)
        return None

    def get_filename(self, fullname: str) -> str:
        return str(pathlib.Path(__file__).with_name(f"{fullname.rpartition('.')[2]}.py"))  # no such file: a name for tracebacks

    def is_package(self, fullname: str) -> bool:
        return False

    def get_source(self, fullname: str) -> str:
        """As moh/models/llama_export.cpp makes it of the file, which is written for LLaMA."""
        family = fullname.removeprefix(_PREFIX)
        prefix = FAMILIES[family]
        config = _CONFIGS.get(family, f"{prefix}Config")
        text = _template().replace("LlamaConfig", config).replace("LlamaModel", config.removesuffix("Config") + "Model")
        text = text.replace("moh_llama", f"moh_{family}")
        return text.replace("Llama", prefix).replace("llama", family.removesuffix("_text"))


sys.meta_path.append(_Finder())
