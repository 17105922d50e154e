#!/usr/bin/env python3
"""cuda_build_test.py LIBRARY REASON: the library holds machine code of every CUDA source for sm_80 and sm_90a. REASON is
empty, or why this build has no CUDA kernels."""
import pathlib
import struct
import sys

library, reason = sys.argv[1:]
if reason:
    print(f"skipped: CUDA kernels are not built: {reason}")
    sys.exit(0)

MAGIC = struct.pack("<I", 0xBA55ED50)  # one per source that nvcc compiled
MACHINE_CODE, ARCHITECTURE_SPECIFIC = 2, 0x100000  # kind of an entry; the flag that makes sm_90 sm_90a
data = pathlib.Path(library).read_bytes()
sources = []
start = data.find(MAGIC)
while start >= 0:
    header, size = struct.unpack_from("<HQ", data, start + 6)
    entry, end, targets = start + header, start + header + size, set()
    while entry < end:
        kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", data, entry)
        (architecture,) = struct.unpack_from("<I", data, entry + 28)
        (flags,) = struct.unpack_from("<Q", data, entry + 40)
        if kind == MACHINE_CODE:
            targets.add(f"sm_{architecture}{'a' if flags & ARCHITECTURE_SPECIFIC else ''}")
        entry += entry_header + entry_size
    sources.append(targets)
    start = data.find(MAGIC, start + 4)

wanted = len(list((pathlib.Path(__file__).resolve().parents[2] / "moh/kernels/cuda").glob("*.cu")))
assert len(sources) == wanted, f"{len(sources)} CUDA sources in {library}, expected {wanted}"
for targets in sources:
    assert targets == {"sm_80", "sm_90a"}, targets
print(f"{wanted} CUDA sources compiled for sm_80 and sm_90a")
