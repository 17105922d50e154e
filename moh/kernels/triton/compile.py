"""What the compiler makes of the kernels, without a GPU, as a table for docs/cuda.md. For each architecture: registers of a
thread, bytes it spills (stores and loads), KB of shared memory of a block, blocks that an SM holds at once.

    python compile.py [--ahead] [--arch 80,90,100] [--only REGEX] [--jobs N]

Needs triton alone. The variants are fixed tables (below), with arguments as C++ passes them: strides of 64 bits, tensors
that begin at 16 bytes. Python compiles whatever a call needs (launch.py)."""

from __future__ import annotations

import argparse
import itertools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

ARCHS = (80, 90, 100)
DTYPES = {"bf16": ("*bf16", 2), "fp16": ("*fp16", 2), "fp32": ("*fp32", 4)}
HEADS = (64, 128)  # tiles hold heads of up to so many elements


def _package():
    """The folder of this file as a package, however it was started; not as `triton`, which is the compiler's name."""
    import importlib.util

    if "moh_triton" not in sys.modules:
        folder = pathlib.Path(__file__).resolve().parent
        spec = importlib.util.spec_from_file_location("moh_triton", folder / "__init__.py", submodule_search_locations=[str(folder)])
        module = importlib.util.module_from_spec(spec)
        sys.modules["moh_triton"] = module
        spec.loader.exec_module(module)
    from moh_triton import backward, decode, forward, lists, projection, tiles

    return backward, decode, forward, lists, projection, tiles


class Variant(NamedTuple):
    """One kernel for one kind of call. few: for calls of few rows (projections)."""

    kernel: str
    dtype: str = "fp32"
    head: int = 64
    mask: str = ""  # full, causal, window; "": any of them, as tile.py says
    extra: str = ""  # "", bias, soft_cap
    sequences: str = ""  # "", sequences, pages
    few: bool = False
    transposed: bool = False  # projections: the weight's elements lie side by side along d, not c
    grad_bias: bool = False
    exact: bool = False  # fp32: three tf32 products each

    def name(self) -> str:
        parts = [self.kernel, self.dtype, f"d{self.head}"]
        if self.kernel == "list_rows":
            parts = [self.kernel, self.sequences]
        elif self.kernel.startswith("attention"):
            parts += [self.mask, self.extra, self.sequences, "grad_bias" if self.grad_bias else ""]
        else:
            parts += ["few" if self.few else "", "transposed" if self.transposed else ""]
        return "-".join(part for part in parts if part)


_FP32 = {"gates", "lse", "sink", "grad_gates", "grad_bias", "parts", "stats"}
_INT32 = {"rows", "counts", "before", "pages"}
_FROM_TORCH = {"gates", "lse", "sink", "bias", "grad_gates", "grad_bias", "sequences", "pages"}  # may begin anywhere
_ANY_STRIDE = re.compile(r"^(b|db)_")  # of the bias; all others are those of heads, which begin at 16 bytes
_STRIDE = re.compile(r"^(q|k|v|o|g|b|dq|dk|dv|db|x|w|a)_[a-z]$")


def function_of(variant: Variant):
    return next(getattr(module, variant.kernel) for module in _package()[:5] if hasattr(module, variant.kernel))


def sizes_of(variant: Variant, arch: int) -> dict[str, int]:
    """Tiles, warps and stages."""
    tiles = _package()[5]
    rows = 16 if variant.few else 1 << 20
    return tiles.tiles(variant.kernel, DTYPES[variant.dtype][1], variant.head, arch, rows, bias=variant.extra == "bias",
                       exact=variant.exact)


def constants_of(variant: Variant, names: list[str], arch: int) -> dict[str, object]:
    _, _, _, lists, _, tiles = _package()
    known = {
        "CAUSAL": variant.mask != "full", "WINDOW": variant.mask in ("window", ""), "SOFT_CAP": variant.extra == "soft_cap",
        "BIAS": variant.extra == "bias", "GRAD_BIAS": variant.grad_bias,
        "SEQUENCES": bool(variant.sequences), "PAGED": variant.sequences == "pages", "SKIP": variant.few,
        "PRECISION": "ieee" if variant.dtype != "fp32" else "tf32x3" if variant.exact else "tf32", "SPLIT": tiles.SPLIT, "STEP": lists.STEP,
        "BLOCK_D": variant.head, **sizes_of(variant, arch)}
    constants = {name: known[name] for name in names if name in known}
    if "BIAS" in names and not known["BIAS"]:
        constants |= {name: None for name in ("bias",)} | {name: 0 for name in ("b_b", "b_h", "b_t", "b_s") if name in names}
    if not variant.grad_bias and "grad_bias" in names:
        constants |= {"grad_bias": None, "db_b": 0, "db_h": 0, "db_t": 0}
    if not variant.sequences and "sequences" in names:
        constants["sequences"] = None
    if "w_c" in names:
        constants["w_d" if variant.transposed else "w_c"] = 1
    if variant.kernel == "weight_gradient":
        constants["o_d" if variant.transposed else "o_c"] = 1
    return constants


class Parameter(NamedTuple):
    """What a launch passes: in this order, and nothing else but two null pointers behind the last (Triton's scratch)."""

    name: str
    type: str  # as Triton spells it
    divisor: int  # of which the value is a multiple, an address in bytes


def parameters_of(variant: Variant, arch: int) -> list[Parameter]:
    names = function_of(variant).arg_names
    constants = constants_of(variant, names, arch)
    pointer, size = DTYPES[variant.dtype]
    parameters = []
    for name in names:
        divisor = 1
        if name in constants:
            continue
        if name in _INT32:
            kind = "*i32"
        elif name == "sequences":
            kind = "*i64"
        elif name in _FP32 or (name == "bias" and variant.kernel.startswith("attention")):
            kind = "*fp32"
        elif name in ("scale", "soft_cap"):
            kind = "fp32"
        elif _STRIDE.match(name):
            kind, divisor = "i64", 1 if _ANY_STRIDE.match(name) else 16 // size
        elif name in ("queries", "keys", "total_rows", "rows_per_batch", "num_rows", "num_heads", "group", "head_dim", "page_size",
                      "window", "few", "steps", "num_parts", "width", "sinks", "biased"):
            kind, divisor = "i32", 16 // size if name in ("head_dim", "width") else 1
        else:
            kind = pointer
        if kind.startswith("*") and name not in _FROM_TORCH:
            divisor = 16
        parameters.append(Parameter(name, kind, divisor))
    return parameters


def compile_variant(variant: Variant, arch: int):
    """The compiled kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = function_of(variant)
    parameters = {p.name: p for p in parameters_of(variant, arch)}
    signature, attributes = {}, {}
    for place, name in enumerate(function.arg_names):
        signature[name] = parameters[name].type if name in parameters else "constexpr"
        if name in parameters and parameters[name].divisor > 1:
            attributes[(place,)] = [["tt.divisibility", parameters[name].divisor]]
    options = {name: size for name, size in sizes_of(variant, arch).items() if name.startswith("num_")}
    options["enable_fp_fusion"] = True
    constants = constants_of(variant, function.arg_names, arch)
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def table() -> list[Variant]:
    """All kernels, masks, types and sizes of tiles; of a bias, a soft cap and nothing one at a time."""
    variants = [Variant("list_rows", sequences=s) for s in ("", "sequences")]
    for dtype, head, mask in itertools.product(DTYPES, HEADS, ("full", "causal", "window")):
        for extra in ("", "bias", "soft_cap"):
            variants += [Variant(kernel, dtype, head, mask, extra) for kernel in
                         ("attention_forward", "attention_decode", "attention_backward_rows", "attention_backward_keys")]
            if extra == "bias":
                variants.append(Variant("attention_backward_rows", dtype, head, mask, extra, grad_bias=True))
        variants.append(Variant("attention_join", dtype, head, mask))
    for dtype, head in itertools.product(DTYPES, HEADS):
        for kernel, transposed in itertools.product(("project_heads", "combine_heads"), (False, True)):
            variants += [Variant(kernel, dtype, head, few=few, transposed=transposed) for few in (False, True)]
        variants += [Variant("weight_gradient", dtype, head, transposed=transposed) for transposed in (False, True)]
    return variants


def ahead_of_time() -> list[Variant]:
    """What a build of the C++ library compiles (archive.py): each kernel once for all masks, with sinks or without, and of a
    bias, a soft cap and nothing one at a time, fp16 with nothing alone. Sequences are batches, or lie in pages (forward)."""
    variants = [Variant("list_rows", sequences=s) for s in ("", "pages")]
    for dtype, head in itertools.product(DTYPES, HEADS):
        exact = dtype == "fp32"
        for extra in ("", "bias", "soft_cap") if dtype != "fp16" else ("",):
            variants += [Variant(kernel, dtype, head, extra=extra, exact=exact) for kernel in
                         ("attention_forward", "attention_decode", "attention_backward_rows", "attention_backward_keys")]
            if extra == "bias":
                variants.append(Variant("attention_backward_rows", dtype, head, extra=extra, grad_bias=True, exact=exact))
            else:
                variants += [Variant(kernel, dtype, head, extra=extra, sequences="pages", exact=exact) for kernel in
                             ("attention_forward", "attention_decode")]
        variants += [Variant("attention_join", dtype, head, sequences=s, exact=exact) for s in ("", "pages")]
        for transposed in (False, True):
            variants += [Variant("project_heads", dtype, head, few=few, transposed=transposed, exact=exact) for few in (False, True)]
            variants.append(Variant("combine_heads", dtype, head, few=True, transposed=transposed, exact=exact))
            variants.append(Variant("weight_gradient", dtype, head, transposed=transposed, exact=exact))
    return variants


class Resources(NamedTuple):
    """Of one compiled kernel."""

    registers: int
    spill: int  # bytes a thread stores to and loads from local memory
    shared: int  # bytes of a block
    warps: int
    atomics: int  # none are wanted: equal inputs give equal bits


# Of an SM: bytes of shared memory for blocks (one takes 1,024 more than it asks for), of one block; the rest is the same.
_SHARED = {80: (164 * 1024, 163 * 1024), 90: (228 * 1024, 227 * 1024), 100: (228 * 1024, 227 * 1024)}


def occupancy(resources: Resources, arch: int) -> int:
    """Blocks that an SM holds at once: 65,536 registers in units of 256 a warp, 64 warps, shared memory."""
    per_warp = -(-resources.registers * 32 // 256) * 256
    by_registers = 65536 // per_warp // resources.warps
    by_shared = _SHARED[arch][0] // (-(-resources.shared // 128) * 128 + 1024)
    return min(by_registers, by_shared, 64 // resources.warps, 32)


def resources_of(job: tuple[Variant, int]) -> Resources:
    variant, arch = job
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    kernel = compile_variant(variant, arch)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(kernel.asm["ptx"])
        file.flush()
        log = subprocess.run([get_ptxas(arch).path, "-v", "--regAllocOptLevel=2", f"--gpu-name={sm_arch_from_capability(arch)}", file.name, "-o", os.devnull],
                             capture_output=True, text=True, check=True).stderr
    stores, loads = map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log).groups())
    registers = int(re.search(r"Used (\d+) registers", log)[1])
    atomics = len(re.findall(r"^\s*(?:@\S+ )?(?:atom|red)\.", kernel.asm["ptx"], re.M))
    return Resources(registers, stores + loads, kernel.metadata.shared, kernel.metadata.num_warps, atomics)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default=",".join(map(str, ARCHS)))
    parser.add_argument("--ahead", action="store_true", help="the variants of a build of the C++ library instead")
    parser.add_argument("--only", default="", help="variants whose name matches this regular expression")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    chosen = [v for v in (ahead_of_time() if options.ahead else table()) if re.search(options.only, v.name())]
    archs = [int(arch) for arch in options.arch.split(",")]
    with ProcessPoolExecutor(options.jobs) as pool:
        results = pool.map(resources_of, [(v, arch) for v in chosen for arch in archs])
        print("".join(["| kernel ", *(f"| sm_{arch} " for arch in archs), "|\n", "|---" * (len(archs) + 1), "|"]))
        for variant in chosen:
            cells = []
            for arch in archs:
                found = next(results)
                assert found.atomics == 0, f"{variant.name()} has atomics"
                cells.append(f"{found.registers}, {found.spill}, {found.shared / 1024:.0f}, {occupancy(found, arch)}")
            print("|", " | ".join([variant.name(), *cells]), "|", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
