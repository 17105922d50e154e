"""Compiles the kernels of the C++ library (compile.ahead_of_time) and writes what moh/kernels/gpu/archive.h reads:

    kernels.bin     the images one after the other: machine code for each architecture, PTX of a few for newer GPUs
    kernels.cpp     the table of them, which includes kernels.bin
    kernels.json    the same table, for tests

    python archive.py FOLDER [--arch 80,90,100] [--jobs N]

Needs triton, and no GPU. Triton keeps what it compiled (~/.triton/cache, by the hash of source and options)."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")  # a third of an image
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import compile as compiler  # noqa: E402

PTX_ARCH = 80  # PTX of later ones says sm_90a, sm_100a, which no other GPU takes
ALIGNMENT = 64
LETTERS = {"i32": "i", "i64": "l", "fp32": "f"}


def has_ptx(variant: compiler.Variant) -> bool:
    """PTX is large: newer GPUs get what models of bf16 need."""
    return variant.kernel == "list_rows" or (variant.dtype == "bf16" and variant.extra == "")


def compiled(job: tuple[compiler.Variant, int]) -> list[dict]:
    variant, arch = job
    kernel = compiler.compile_variant(variant, arch)
    about = kernel.metadata
    assert about.num_ctas == 1 and not about.global_scratch_size and not about.profile_scratch_size, about
    constants = compiler.constants_of(variant, compiler.function_of(variant).arg_names, arch)
    row = {
        "variant": variant.name(), "function": about.name, "arch": arch, "ptx": False, "warps": about.num_warps, "shared": about.shared,
        "parameters": [[p.name, p.type, p.divisor] for p in compiler.parameters_of(variant, arch)],
        "constants": {name: value for name, value in constants.items() if value is not None}, "image": kernel.asm["cubin"]}
    if arch == PTX_ARCH and has_ptx(variant):
        lines = (line.split("//")[0].strip() for line in kernel.asm["ptx"].splitlines())
        return [row, {**row, "ptx": True, "image": "\n".join(line for line in lines if line).encode() + b"\0"}]
    return [row]


def source(rows: list[dict], binary: pathlib.Path) -> str:
    """Strings that many rows share are written once by the linker."""
    tiles = compiler._package()[5]
    lines = []
    for row in rows:
        parameters = " ".join(f"{name}:{'p' if kind.startswith('*') else LETTERS[kind]}:{divisor}" for name, kind, divisor in row["parameters"])
        constants = " ".join(f"{name}={int(value)}" for name, value in row["constants"].items() if not isinstance(value, str))
        lines.append(f'    {{"{row["variant"]}", "{row["function"]}", {row["arch"]}, {str(row["ptx"]).lower()}, {row["offset"]}, '
                     f'{row["warps"]}, {row["shared"]}, "{parameters}", "{constants}"}},\n')
    return f"""// Written by moh/kernels/triton/archive.py.
#include "moh/kernels/gpu/archive.h"

asm(".pushsection .rodata\\n.balign {ALIGNMENT}\\nmoh_gpu_images:\\n.incbin \\"{binary}\\"\\n.popsection\\n");
extern "C" __attribute__((visibility("hidden"))) const unsigned char moh_gpu_images[];

namespace moh::kernels::gpu {{
const unsigned char* const kImages = moh_gpu_images;
const char* const kNotBuilt = "";
const KernelRow kRows[] = {{
{"".join(lines)}}};
const std::size_t kNumRows = sizeof kRows / sizeof kRows[0];
const std::int64_t kFewQueries = {tiles.FEW}, kFewRows = {tiles.FEW_ROWS};
}}  // namespace moh::kernels::gpu
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--arch", default=",".join(map(str, compiler.ARCHS)))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    jobs = [(variant, int(arch)) for variant in compiler.ahead_of_time() for arch in options.arch.split(",")]
    with ProcessPoolExecutor(options.jobs) as pool:
        rows = [row for found in pool.map(compiled, jobs) for row in found]
    images = bytearray()
    for row in rows:
        images += bytes(-len(images) % ALIGNMENT)
        image = row.pop("image")
        row |= {"offset": len(images), "size": len(image)}
        images += image
    options.folder.mkdir(parents=True, exist_ok=True)
    binary = options.folder.resolve() / "kernels.bin"
    binary.write_bytes(images)
    (options.folder / "kernels.json").write_text(json.dumps(rows))
    (options.folder / "kernels.cpp").write_text(source(rows, binary))
    print(f"{len(jobs)} GPU kernels, {len(images) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
