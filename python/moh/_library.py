"""Finds and loads the compiled kernels: a library that knows torch only by its stable ABI, or the whole libmoh.so if the
program has loaded that already."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import platform

import torch

OLDEST_TORCH = (2, 10)
_here = pathlib.Path(__file__).parent
_reason: str | None = None  # None: not tried yet; "": loaded


def _version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()))


if _version() < OLDEST_TORCH:
    raise ImportError(f"moh needs torch {'.'.join(map(str, OLDEST_TORCH))} or newer, this is torch {torch.__version__}")


def _load() -> str:
    path = pathlib.Path(os.environ.get("MOH_LIBRARY") or _here / "_moh.so")
    if not path.exists():
        return (f"{path} does not exist: this package was installed without compiled kernels; `pip install moh-attention` on "
                f"Linux, or set MOH_LIBRARY (here: {platform.system()}, {platform.machine()})")
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f"{path} does not load into torch {torch.__version__}: {str(error).splitlines()[0]}"
    return ""


def whole_library() -> bool:
    """Whether the program loaded libmoh.so, which registers the operators itself."""
    return torch._C._dispatch_has_kernel("moh::head_attention_forward") and not hasattr(torch.ops.moh_kernels, "attention_forward")


def unavailable_reason() -> str:
    """Empty: the kernels are there."""
    global _reason
    if _reason is None:
        _reason = "" if whole_library() else _load()
    return _reason


def available() -> dict[str, str]:
    """What works here: a reason why not for each part, empty where it works. `head_attention` computes without kernels too,
    every head of it, with torch's operations."""
    parts = {"kernels": unavailable_reason()}
    for part, package in (("transformers", "transformers"), ("timm", "timm"), ("diffusers", "diffusers")):
        found = importlib.util.find_spec(package) is not None
        parts[part] = "" if found else f"the package {package} is not installed"
    from . import gpu

    parts["triton"] = gpu.unavailable_reason()  # compiles, which does not mean that there is a GPU
    parts["sharding"] = "" if torch.distributed.is_available() else "this torch was built without torch.distributed"
    return parts
