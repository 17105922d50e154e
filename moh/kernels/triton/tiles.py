"""Sizes of tiles, warps and stages of every kernel by element size, head size and architecture: the largest that the
compiler makes without spills worth the name (docs/cuda.md has registers, spills and shared memory). None was tuned on a
GPU."""

import math

SPLIT = 512  # keys of one part in decoding
FEW = 4  # sequences of up to so many queries are decoded
FEW_ROWS = 64  # projections of up to so many rows have small tiles
JOIN = 16  # parts that attention_join reads at once
LIST_BLOCK = 2048

# By (bytes of an element, tile's head size, sm_80 or sm_90 and above): rows, keys, warps, stages.
_FORWARD = {
    (2, 64, 80): (128, 64, 8, 3), (2, 64, 90): (128, 64, 8, 3), (2, 128, 80): (128, 32, 8, 3), (2, 128, 90): (128, 64, 8, 2),
    (4, 64, 80): (128, 32, 8, 2), (4, 64, 90): (64, 32, 8, 2), (4, 128, 80): (64, 32, 8, 2), (4, 128, 90): (64, 32, 8, 2),
}
_BACKWARD_ROWS = {
    (2, 64, 80): (128, 32, 8, 2), (2, 64, 90): (128, 64, 8, 2), (2, 128, 80): (64, 32, 8, 2), (2, 128, 90): (128, 32, 8, 2),
    (4, 64, 80): (64, 32, 8, 1), (4, 64, 90): (64, 32, 8, 1), (4, 128, 80): (64, 16, 8, 1), (4, 128, 90): (64, 16, 8, 1),
}
_BACKWARD_KEYS = {
    (2, 64, 80): (32, 128, 8, 2), (2, 64, 90): (64, 128, 8, 2), (2, 128, 80): (32, 64, 8, 2), (2, 128, 90): (32, 128, 8, 2),
    (4, 64, 80): (32, 32, 8, 1), (4, 64, 90): (32, 64, 8, 1), (4, 128, 80): (32, 32, 8, 1), (4, 128, 90): (32, 32, 8, 1),
}
# The same with a bias, whose addresses and elements take registers too.
_FORWARD_BIAS = {
    (2, 64, 80): (64, 64, 8, 2), (2, 64, 90): (128, 32, 8, 2), (2, 128, 80): (64, 32, 8, 2), (2, 128, 90): (64, 32, 8, 2),
    (4, 64, 80): (64, 32, 8, 1), (4, 64, 90): (64, 32, 8, 1), (4, 128, 80): (32, 32, 8, 1), (4, 128, 90): (32, 32, 8, 1),
}
_BACKWARD_ROWS_BIAS = {
    (2, 64, 80): (64, 32, 8, 1), (2, 64, 90): (128, 32, 8, 1), (2, 128, 80): (32, 32, 8, 1), (2, 128, 90): (64, 32, 8, 1),
    (4, 64, 80): (32, 32, 8, 1), (4, 64, 90): (32, 32, 8, 1), (4, 128, 80): (32, 16, 8, 1), (4, 128, 90): (32, 16, 8, 1),
}
_BACKWARD_KEYS_BIAS = {
    (2, 64, 80): (32, 64, 8, 1), (2, 64, 90): (32, 64, 8, 1), (2, 128, 80): (32, 64, 8, 1), (2, 128, 90): (32, 32, 8, 1),
    (4, 64, 80): (32, 32, 8, 1), (4, 64, 90): (32, 32, 8, 1), (4, 128, 80): (16, 32, 8, 1), (4, 128, 90): (16, 32, 8, 1),
}
_LARGE = {  # heads of more than 128 elements: small tiles, right before fast
    "attention_forward": (64, 32, 8, 1), "attention_backward_rows": (32, 32, 8, 1), "attention_backward_keys": (32, 32, 8, 1)}
_ATTENTION = {"attention_forward": (_FORWARD, _FORWARD_BIAS), "attention_backward_rows": (_BACKWARD_ROWS, _BACKWARD_ROWS_BIAS),
              "attention_backward_keys": (_BACKWARD_KEYS, _BACKWARD_KEYS_BIAS)}
_EXACT = {  # three products hold their operands in parts
    64: {"attention_forward": (32, 32, 8, 1), "attention_backward_rows": (32, 16, 8, 1), "attention_backward_keys": (16, 32, 8, 1)},
    128: {"attention_forward": (16, 32, 4, 1), "attention_backward_rows": (16, 16, 8, 1), "attention_backward_keys": (16, 32, 8, 1)}}


def block_d(head_dim: int) -> int:
    """A head as tiles have it: masks cut off what is not there."""
    return max(16, 1 << math.ceil(math.log2(head_dim)))


def tiles(kernel: str, element_size: int, head_dim: int, arch: int, rows: int = 1 << 20, *, bias: bool = False,
          exact: bool = False) -> dict[str, int]:
    """Arguments of a launch. rows: of the call, where few ones ask for smaller tiles of projections. exact: fp32 whose products
    are three of tf32 each."""
    d, half = block_d(head_dim), element_size == 2
    if kernel in _ATTENTION:
        # GeForce kinds (8.6, 8.9, 12.0) have 99 KB of shared memory a block, which the tiles of 8.0 keep to.
        key = element_size, 64 if d <= 64 else 128, 90 if 90 <= arch < 120 else 80
        sizes = _LARGE[kernel] if d > 128 else _EXACT[key[1]][kernel] if exact else _ATTENTION[kernel][bias][key]
        if kernel == "attention_backward_keys" and arch >= 100 and sizes == (32, 128, 8, 2) and d == 128:
            sizes = (64, 64, 8, 2)  # tcgen05 wants other registers
        if kernel == "attention_backward_rows" and arch >= 100 and bias and sizes == (128, 32, 8, 1):
            sizes = (64, 32, 8, 1)
        return dict(zip(("BLOCK_M", "BLOCK_N", "num_warps", "num_stages"), sizes))
    large, few = d > 128, rows <= FEW_ROWS
    if kernel == "list_rows":
        return {"BLOCK": LIST_BLOCK, "num_warps": 8, "num_stages": 1}
    if kernel == "attention_decode":
        return {"BLOCK_M": 16, "BLOCK_N": 64 if half and not large else 32, "num_warps": 4, "num_stages": 3 if half and not large else 2}
    if kernel == "attention_join":
        return {"BLOCK_P": JOIN, "num_warps": 4, "num_stages": 1}
    if kernel == "project_heads":
        return {"BLOCK_M": 16 if few else 64 if large or exact else 128, "BLOCK_K": 64 if half and not large else 32,
                "num_warps": 4 if few else 8, "num_stages": 3 if half else 2}
    if kernel == "combine_heads":
        return {"BLOCK_M": 16 if few else 32 if large or exact else 128, "BLOCK_N": 128 if half and not large else 32 if exact else 64,
                "num_warps": 4 if few else 8, "num_stages": 1 if large else 3 if half and 90 <= arch < 120 else 2}
    if kernel == "weight_gradient":
        return {"BLOCK_N": 64 if large or exact else 128, "BLOCK_K": 64 if half and not large else 32, "num_warps": 8,
                "num_stages": 3 if half and not large else 1 if large else 2}
    raise ValueError(f"no tiles for {kernel}")
