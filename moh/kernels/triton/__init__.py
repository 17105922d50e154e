"""The GPU kernels of moh, in Triton. They compute what moh/kernels/*.h say; read these headers first.

    lists.py          which rows use a head: from the gates, on the device
    tile.py           what kernels share: sequences, addresses of keys, scores
    forward.py        head attention of blocks of rows
    decode.py         of a few rows and many keys: keys split over programs, partial results joined
    backward.py       gradients, without atomics
    projection.py     products between hidden states and heads
    tiles.py          sizes of tiles, warps and stages
    launch.py         torch tensors in, launches out (the only file here that needs torch)
    compile.py        what the compiler makes of them, without a GPU

No kernel waits for the host or lets it wait: grids are upper bounds known from shapes, and programs beyond what the device
counted end at once. So a call can be captured in a CUDA graph."""
