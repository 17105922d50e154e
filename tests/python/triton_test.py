"""The GPU kernels (moh/kernels/triton) in Triton's interpreter on a CPU, beside the formula in float64: the shapes, gates,
layouts, variants and tolerances of tests/kernels/head_attention_test.cpp; their launches through Triton's compiler.
Usage: triton_test.py [BUILD] [--all]: the whole table of shapes, some minutes, instead of a part of it."""

import importlib.util
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings

if "--inside-compiler" not in sys.argv:
    os.environ |= {"TRITON_INTERPRET": "1", "MOH_BACKEND": "triton"}  # tensors on the CPU run in the interpreter
os.environ.setdefault("MOH_LIBRARY", "/nowhere/_moh.so")  # the package's own operators, without CPU kernels
ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "python"))
if importlib.util.find_spec("triton") is None:
    print("skipped: the package triton is not installed (pip install triton)")
    sys.exit(77)

import torch  # noqa: E402

torch.set_num_threads(1)
import moh  # noqa: E402
import moh.gpu  # noqa: E402

launch, lists = moh.gpu.launch(), moh.gpu.kernels("lists")

# batch, queries, keys, heads, KV heads, head size
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 1, 300, 8, 2, 64), (1, 1, 1000, 4, 4, 72), (1, 3, 700, 8, 1, 128), (2, 5, 5, 4, 4, 8), (1, 33, 33, 6, 2, 24),
          (1, 13, 40, 4, 1, 16), (1, 40, 13, 4, 2, 16), (1, 97, 97, 2, 2, 80), (1, 129, 129, 2, 1, 96), (1, 200, 260, 3, 3, 64),
          (1, 101, 101, 2, 2, 256), (1, 7, 0, 2, 1, 8), (2, 257, 257, 2, 1, 5)]
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 1.6e-2), (torch.float16, 2e-3)]
LAYOUTS = ("dense", "gaps", "transposed", "every other")


def draw(random, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=random)


def laid_out(tensor, layout, dtype):
    """[B, T, H, D] with other strides: three unused elements after a row, [B, H, T, D], every other element."""
    b, t, h, d = tensor.shape
    if layout == "gaps":
        memory = torch.full((b, t, h, d + 3), math.nan, dtype=dtype)[..., :d]
    elif layout == "transposed":
        memory = torch.empty((b, h, t, d), dtype=dtype).transpose(1, 2)
    elif layout == "every other":
        memory = torch.full((b, t, h, 2 * d), math.nan, dtype=dtype)[..., ::2]
    else:
        memory = torch.empty((b, t, h, d), dtype=dtype)
    return memory.copy_(tensor)


def draw_gates(random, kind, *shape):
    """Of both signs, and a few so small that fp16 cannot hold the output."""
    gates = torch.rand(*shape, generator=random) * 4 - 1.995
    gates = torch.where(torch.rand(*shape, generator=random) < 0.125, gates * 1e-7, gates)
    if kind == "some":
        gates = torch.where(torch.rand(*shape, generator=random) < 0.5, gates, 0.0)
    elif kind == "one head":
        gates[..., :-1] = 0
    elif kind == "none":
        gates.zero_()
    return gates


def formula(query, key, value, gates, bias=None, causal=False, window=0, soft_cap=0.0, sink=None):
    """Head by head in float64; rows that see no key are zero. Also the log-sum-exp."""
    group, (tokens, keys), rows, logs = query.shape[2] // key.shape[2], (query.shape[1], key.shape[1]), [], []
    back = torch.arange(tokens)[:, None] + keys - tokens - torch.arange(keys)[None, :]
    seen = (back >= 0) & ((back < window) if window else (back < tokens + keys)) if causal else torch.ones(tokens, keys, dtype=torch.bool)
    for head in range(query.shape[2]):
        scores = query[:, :, head] @ key[:, :, head // group].transpose(1, 2) * query.shape[3] ** -0.5
        scores = soft_cap * torch.tanh(scores / soft_cap) if soft_cap else scores
        scores = scores if bias is None else scores + bias[:, head]
        scores = scores.masked_fill(~seen, -math.inf)
        sums = torch.exp(scores).sum(-1)
        if sink is not None:
            sums = sums + torch.where(seen.any(-1), torch.exp(sink[head]), 0.0)
        weights = torch.exp(scores) / torch.where(sums == 0, 1.0, sums).unsqueeze(-1)
        rows.append(weights @ value[:, :, head // group] * gates[:, :, head, None])
        logs.append(torch.where(gates[:, :, head] == 0, -math.inf, sums.log()))
    return torch.stack(rows, 2), torch.stack(logs, 2)


def close(what, got, expected, tolerance):
    """Within the tolerance of the largest number; infinities must be equal."""
    got, expected = got.double(), expected.double()
    assert got.shape == expected.shape, f"{what}: shape {list(got.shape)}, expected {list(expected.shape)}"
    if expected.numel() == 0:
        return
    finite = expected[expected.isfinite()]
    scale = max(1.0, finite.abs().max().item() if finite.numel() else 1.0)
    error = torch.where(got == expected, 0.0, (got - expected).abs() / scale).nan_to_num(nan=math.inf).max().item()
    assert error <= tolerance, f"{what}: off by {error:.3g} of {scale:.3g}, {tolerance:.3g} are allowed"


def attention_case(shape, dtype, tolerance, kind, causal, seed):
    batch, tokens, keys, heads, kv_heads, dim = shape
    random = torch.Generator().manual_seed(seed)
    layout, bias_kind = LAYOUTS[seed % 4], ("none", "plain", "broadcast", "hiding")[(seed + seed // 4) % 4]
    window = (1, 7, 150)[seed // 8 % 3] if causal and seed % 8 >= 4 else 0
    soft_cap, sink = (1.5 if seed % 3 == 0 else 0.0), (torch.randint(-3, 4, (heads,), generator=random).double() if seed % 5 == 0 else None)
    query, key, value = (draw(random, batch, t, h, dim).to(dtype).double() for t, h in ((tokens, heads), (keys, kv_heads), (keys, kv_heads)))
    gates = draw_gates(random, kind, batch, tokens, heads)
    bias_dtype = dtype if seed % 2 == 0 else torch.float32
    bias = None
    if bias_kind != "none":
        bias = draw(random, *((tokens, keys) if bias_kind == "broadcast" else (batch, heads, tokens, keys))).to(bias_dtype).double()
    if bias_kind == "hiding":
        bias[torch.rand(bias.shape, generator=random) < 1 / 3] = -math.inf
        bias[:, :, 1::5] = -math.inf
    what = f"{dtype} {shape} gates {kind}, causal {causal}, window {window}, cap {soft_cap}, sink {sink is not None}, bias {bias_kind}, {layout}"

    variables = [t.clone().requires_grad_() for t in (query, key, value, gates.double())]
    whole = None if bias is None else bias.expand(batch, heads, tokens, keys).clone().requires_grad_()
    expected, logs = formula(*variables, bias=whole, causal=causal, window=window, soft_cap=soft_cap, sink=sink)
    tensors = [laid_out(t, layout, dtype) for t in (query, key, value)]
    given = dict(bias=None if bias is None else bias.to(bias_dtype), causal=causal, window=window, soft_cap=soft_cap)
    out, lse = launch.attention_forward(*tensors, gates, sink=None if sink is None else sink.float(), **given)
    assert not out[gates == 0].any(), f"{what}: skipped rows must be zero"
    close(f"{what}: out", out, expected.detach(), tolerance)
    close(f"{what}: lse", lse, logs.detach(), 1e-5)

    grad = draw(random, batch, tokens, heads, dim).to(dtype)
    grads = launch.attention_backward(laid_out(grad, layout, dtype), *tensors, gates, lse, bias_gradient=bias is not None, **given)
    over = variables + ([whole] if bias is not None else [])
    wanted = [torch.zeros_like(v) if g is None else g.nan_to_num(nan=0.0) for v, g in
              zip(over, torch.autograd.grad(expected, over, grad.double(), allow_unused=True))]
    wanted[3] = torch.where(gates == 0, 0.0, wanted[3])
    for name, got, want, allowed in zip(("query", "key", "value", "gates", "bias"), grads, wanted, (4, 4, 4, None, 8)):
        close(f"{what}: gradient of {name}", got, want, 4e-5 if allowed is None else allowed * tolerance)


def check_attention(every):
    seed = cases = 0
    for dtype, tolerance in DTYPES:
        for shape in SHAPES:
            for kind in ("some", "none", "one head", "all"):
                if dtype != torch.float32 and kind != "some":
                    continue
                for causal in (False, True):
                    seed += 1
                    if every or (seed % 13 == 0 and shape[5] < 256):
                        attention_case(shape, dtype, tolerance, kind, causal, seed)
                        cases += 1
    return f"{cases} cases"


def check_sequences(every):
    """Sequences of many lengths in one call, keys side by side and in pages of two layouts, beside a call for each: equal to
    the bit, and each equal to the formula."""
    lengths = [(1, 300), (130, 130), (1, 1), (40, 333), (0, 5), (3, 90), (9, 4), (1, 600)] if every else [(1, 40), (37, 37), (1, 1), (0, 5), (3, 530), (9, 4)]
    heads, kv_heads, dim, page = (4, 2, 24, 16) if every else (2, 1, 24, 16)
    random = torch.Generator().manual_seed(7)
    rows, keys = sum(t for t, _ in lengths), sum(s for _, s in lengths)
    pages = sum(-(-s // page) for _, s in lengths)
    order = torch.randperm(pages, generator=random).int()
    for dtype, tolerance in DTYPES[: 2 if every else 1]:
        for variant in ({"causal": True, "window": 30}, {"soft_cap": 2.0, "sink": draw(random, heads).float()}, {"causal": True})[: 3 if every else 2]:
            query, key, value = (draw(random, 1, n, h, dim).to(dtype) for n, h in ((rows + 2, heads), (keys, kv_heads), (keys, kv_heads)))
            gates, grad = draw_gates(random, "some", 1, rows + 2, heads), draw(random, 1, rows + 2, heads, dim).to(dtype)
            pool = torch.full((pages, page, kv_heads, 2, dim), math.nan, dtype=dtype)
            mixed = torch.full((pages, kv_heads, page, 2 * dim), math.nan, dtype=dtype)
            table, first_row, first_key, first_page, alone, alone_grads = [], 0, 0, 0, [], []
            backward = {name: v for name, v in variant.items() if name != "sink"}
            for t, s in lengths:
                table.append((0, first_row, t, s, first_key, first_page))
                own = slice(first_row, first_row + t), slice(first_key, first_key + s)
                for i in range(s):
                    number, place = order[first_page + i // page], i % page
                    pool[number, place, :, 0], pool[number, place, :, 1] = key[0, first_key + i], value[0, first_key + i]
                    mixed[number, :, place] = torch.cat([key[0, first_key + i], value[0, first_key + i]], -1)
                args = query[:, own[0]], key[:, own[1]], value[:, own[1]], gates[:, own[0]]
                out, lse = launch.attention_forward(*args, **variant)
                expected, logs = formula(*(a.double() for a in args), **{n: v.double() if n == "sink" else v for n, v in variant.items()})
                close(f"sequence {t} x {s}, {dtype}, {list(variant)}", out, expected, tolerance)
                close(f"lse of sequence {t} x {s}", lse, logs, 1e-5)
                alone.append((own[0], out, lse))
                alone_grads.append((own, launch.attention_backward(grad[:, own[0]], *args, lse, **backward)))
                first_row, first_key, first_page = first_row + t, first_key + s, first_page + -(-s // page)
            numbers = torch.tensor(table)
            longest, most = max(t for t, _ in lengths), max(s for _, s in lengths)
            together = launch.Sequences(numbers, longest, most)
            for name, k, v, sequences in (("together", key, value, together),
                                          ("in pages", pool[:, :, :, 0], pool[:, :, :, 1], together._replace(pages=order, page_size=page)),
                                          ("in a pool of both", mixed[..., :dim].transpose(1, 2), mixed[..., dim:].transpose(1, 2),
                                           together._replace(pages=order, page_size=page))):
                out, lse = launch.attention_forward(query, k, v, gates, sequences=sequences, **variant)
                assert not out[:, rows:].any(), "rows of no sequence are zero"
                for own, want, logs in alone:
                    assert torch.equal(out[:, own], want) and torch.equal(lse[:, own], logs), f"{name}, {dtype}, {list(variant)}: other bits"
                if name == "together":
                    grads = launch.attention_backward(grad, query, k, v, gates, lse, sequences=sequences, **backward)
                    for own, want in alone_grads:
                        for got, expected, part in zip(grads, want, (own[0], own[1], own[1], own[0])):
                            assert torch.equal(got[:, part], expected), f"gradient {name}, {dtype}, {list(variant)}: other bits"
    return f"{len(lengths)} sequences"


def check_extremes(every):
    random = torch.Generator().manual_seed(3)
    for tokens in (3, 20):  # NaN reaches the output, decoding and not
        tensors = [draw(random, 1, tokens, 2, 16).float() for _ in range(3)]
        tensors[0][0, 0, 0, 0] = math.nan
        assert launch.attention_forward(*tensors, torch.ones(1, tokens, 2), causal=True)[0][0, 0, 0].isnan().all(), "NaN was lost"
    for tokens in (1, 60):  # heads that no token selects are not read
        query, key, value, grad = (draw(random, 1, t, 4, 16).float() for t in (tokens, 60, 60, tokens))
        gates = draw_gates(random, "one head", 1, tokens, 4)
        for t in (query, key, value, grad):
            t[:, :, :3] = math.nan
        out, lse = launch.attention_forward(query, key, value, gates, causal=True)
        for got in (out, *launch.attention_backward(grad, query, key, value, gates, lse, causal=True)[:3]):
            assert not got[:, :, :3].any() and not got.isnan().any(), "a skipped head was read"
    big = draw(random, 1, 2, 1, 16).float() * 1e3  # scores of some thousand
    got = launch.attention_forward(big, big, big, torch.ones(1, 2, 1))[0]
    close("large scores", got, torch.nn.functional.scaled_dot_product_attention(*(big.double().transpose(1, 2),) * 3).transpose(1, 2), 1e-5)


def check_lists(every):
    random = torch.Generator().manual_seed(2)
    for rows, heads in ((1, 1), (70, 3), (2100, 2)):
        gates = draw_gates(random, "some", rows, heads)
        found = launch.list_rows(gates, rows, 1)
        for h in range(heads):
            chosen = gates[:, h].nonzero().flatten()
            assert found.counts[0, h] == len(chosen) and torch.equal(found.rows[h, : len(chosen)].long(), chosen), "selected rows, ascending"
            assert torch.equal(found.rows[h].long().sort().values, torch.arange(rows)), "every row once"
            below = [(chosen < start).sum().item() for start in range(0, rows, lists.STEP)]
            assert found.before[0, h].tolist() == below


def check_projections(every):
    random = torch.Generator().manual_seed(5)
    shapes = [(1, 1, 8, 8), (5, 4, 64, 40), (70, 3, 24, 100), (90, 2, 72, 48), (33, 2, 128, 72)] if every else [(5, 4, 64, 40), (70, 3, 24, 100), (40, 2, 72, 48)]
    for rows, heads, dim, width in shapes:
        for dtype, tolerance in DTYPES:
            for kind in ("some", "none", "all")[: 3 if every else 1]:
                gates = draw_gates(random, kind, rows, heads)
                on = (gates != 0).double()
                x, back = draw(random, rows, width + 3).to(dtype)[:, :width], draw(random, rows, heads, dim).to(dtype)
                spoiled = torch.where(on.unsqueeze(-1) != 0, back, math.nan)  # skipped heads are not read
                for transposed in (False, True):
                    # W_Q [H * D, C], or W_O [C, H * D] seen as [H, D, C].
                    weight = draw(random, heads * dim, width).to(dtype) * 0.2 if not transposed else draw(random, width, heads * dim).to(dtype).t() * 0.2
                    weight = weight.unflatten(0, (heads, dim))
                    bias, short = draw(random, heads, dim).to(dtype), draw(random, width).to(dtype)
                    what = f"{dtype}, {rows} rows, {heads} x {dim}, width {width}, gates {kind}, transposed {transposed}"
                    w = weight.double()
                    want = (torch.einsum("rc,hdc->rhd", x.double(), w) + bias.double()) * on.unsqueeze(-1)
                    close(f"project_heads, {what}", launch.project_heads(x, weight, gates, bias), want, 2 * tolerance)
                    want = torch.einsum("rhd,hdc->rc", back.double() * on.unsqueeze(-1), w) + short.double()
                    close(f"combine_heads, {what}", launch.combine_heads(spoiled, weight, gates, short), want, 2 * tolerance)
                    grad = torch.empty_like(weight)
                    want = torch.einsum("rhd,rc->hdc", back.double() * on.unsqueeze(-1), x.double())
                    close(f"weight_gradient, {what}", launch.weight_gradient(spoiled, x, gates, grad), want, 2 * tolerance)


def check_no_waiting(every):
    """Nothing on the way to a launch looks into a tensor, so nothing waits for a device and a CUDA graph can hold the call."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default,
                                    torch.ops.aten.is_nonzero.default), f"{function} waits for the device"
            return function(*args, **(kwargs or {}))

    random = torch.Generator().manual_seed(1)
    query, key, value = (draw(random, 1, 40, 2, 16).float() for _ in range(3))
    gates = draw_gates(random, "some", 1, 40, 2)
    with Watch():
        out, lse = launch.attention_forward(query, key, value, gates, causal=True)
        launch.attention_backward(out, query, key, value, gates, lse, causal=True)
        launch.attention_forward(query[:, :1], key, value, gates[:, :1])
        heads = launch.project_heads(query[0, :, 0], key[0].permute(1, 0, 2), gates[0])
        launch.combine_heads(heads, key[0].permute(1, 0, 2), gates[0])


def check_operator(every):
    """torch.ops.moh.head_attention on the kernels: registered for CUDA tensors, differentiable, the rest as it was."""
    for name in ("head_attention_forward", "head_attention_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"moh::{name}", "CUDA"), f"{name} has no kernel for CUDA tensors"
    random = torch.Generator().manual_seed(11)
    query, key, value = (draw(random, 1, t, h, 16).float().requires_grad_() for t, h in ((20, 4), (24, 2), (24, 2)))
    gates, sink = draw_gates(random, "some", 1, 20, 4).requires_grad_(), draw(random, 4).float().requires_grad_()
    bias = draw(random, 1, 1, 20, 24).float().requires_grad_()
    over = [query, key, value, gates, bias, sink]
    calls = []
    plain = launch.attention_forward
    launch.attention_forward = lambda *a, **o: calls.append(1) or plain(*a, **o)
    try:
        out = moh.head_attention(query, key, value, gates, bias=bias, causal=True, soft_cap=2.0, sink=sink)
    finally:
        launch.attention_forward = plain
    assert calls, "the operator did not run the kernels"
    doubles = [t.detach().double().requires_grad_() for t in over]
    want, _ = formula(*doubles[:4], bias=doubles[4].expand(1, 4, 20, 24), causal=True, soft_cap=2.0, sink=doubles[5])
    close("operator", out.detach(), want.detach(), 1e-5)
    wanted = list(torch.autograd.grad(want.square().sum(), doubles))
    wanted[3] = torch.where(gates == 0, 0.0, wanted[3])
    for i, (got, expected) in enumerate(zip(torch.autograd.grad(out.square().sum(), over), wanted)):
        close(f"operator, gradient {i}", got, expected, 4e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = moh.head_attention(query, key, value, gates, causal=True)
    assert half.dtype == torch.bfloat16
    assert torch.autograd.gradcheck(lambda q: moh.head_attention(q, q, q, torch.ones(1, 3, 1)), draw(random, 1, 3, 1, 2).requires_grad_())
    try:
        moh.head_attention(*(torch.ones(1, 1, 1, 300),) * 3, torch.ones(1, 1, 1))
    except RuntimeError as error:
        assert "head sizes up to 256, not 300" in str(error), error
    else:
        raise AssertionError("a head size without a kernel was taken")


def again(part, **variables):
    """A part of this test in a process of its own."""
    environment = {name: text for name, text in {**os.environ, **variables}.items() if text is not None}
    run = subprocess.run([sys.executable, __file__, part], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def check_compiles(every):
    """The launches' own arguments through Triton's compiler, for each kind of GPU: types, names, no atomics, tensor cores."""
    with tempfile.TemporaryDirectory() as folder:
        for arch in ("80", "90", "100") if every else ("90",):
            again("--inside-compiler", TRITON_INTERPRET=None, TRITON_CACHE_DIR=folder, MOH_TEST_ARCH=arch)


def inside_compiler():
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime.jit import JITFunction

    class NoDevice(DriverBase):
        """A driver that knows what to compile for and has nothing to run it on."""

        def __init__(self):
            pass

        is_active = staticmethod(lambda: True)
        map_python_to_cpp_type = get_benchmarker = get_active_torch_device = get_empty_cache_for_benchmark = clear_cache = None

        def get_current_target(self):
            return GPUTarget("cuda", int(os.environ["MOH_TEST_ARCH"]), 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    compiled = {}
    plain = JITFunction.run

    def compile_alone(self, *arguments, grid, warmup, **options):
        compiled.setdefault(self.__name__, []).append(plain(self, *arguments, grid=grid, warmup=True, **options).asm["ptx"])

    JITFunction.run = compile_alone
    triton.runtime.driver.set_active(NoDevice())
    half, heads = torch.bfloat16, 4
    query, key, gates = torch.zeros(1, 40, heads, 72, dtype=half), torch.zeros(1, 50, 2, 72, dtype=half), torch.zeros(1, 40, heads)
    bias, one = torch.zeros(40, 50), torch.zeros(1, 1, 1, 1)
    out, lse = launch.attention_forward(query, key, key, gates, causal=True, window=20, sink=torch.zeros(heads), bias=bias, soft_cap=1.0)
    launch.attention_backward(out, query, key, key, gates, lse, causal=True, bias=bias, bias_gradient=True)
    launch.attention_forward(one, one, one, one[..., 0])
    sequences = launch.Sequences(torch.zeros(3, 6, dtype=torch.int64), 40, 50)
    paged = sequences._replace(pages=torch.zeros(9, dtype=torch.int32), page_size=16)
    launch.attention_forward(query, key, key, gates, sequences=paged, causal=True)
    launch.attention_backward(out[..., :64], query[..., :64], key[..., :64], key[..., :64], gates, lse, causal=True, sequences=sequences)
    weight, x = torch.zeros(heads, 64, 40, dtype=half), torch.zeros(80, 40, dtype=half)
    found = launch.project_heads(x, weight, torch.zeros(80, heads), torch.zeros(heads, 64, dtype=half))
    launch.combine_heads(found, weight, torch.zeros(80, heads))
    launch.weight_gradient(found, x, torch.zeros(80, heads), weight)
    want = {"list_rows", "attention_forward", "attention_decode", "attention_join", "attention_backward_rows", "attention_backward_keys",
            "project_heads", "combine_heads", "weight_gradient"}
    assert compiled.keys() == want, f"not compiled: {want - compiled.keys()}"
    for name, sources in compiled.items():
        for ptx in sources:
            assert not re.search(r"^\s*(?:@\S+ )?(?:atom|red)\.", ptx, re.M), f"{name} has atomics"
            matrix = re.search(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma", ptx)
            assert matrix or name in ("list_rows", "attention_join"), f"{name} does not use the tensor cores"


def check_library(every):
    """With libmoh.so its projections, lists and paged attention run the kernels too."""
    build = pathlib.Path(next((a for a in sys.argv[1:] if not a.startswith("-") and pathlib.Path(a).is_dir()), ROOT / "build"))
    if not (build / "libmoh.so").exists():
        print(f"check_library not run: {build / 'libmoh.so'} is not built")
        return
    again("--inside-library", MOH_LIBRARY=str(build / "libmoh.so"))


def inside_library():
    random = torch.Generator().manual_seed(4)
    ops = torch.ops.moh
    for name in moh.gpu.OF_THE_LIBRARY:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"moh::{name}", "CUDA"), name
    gates = draw_gates(random, "some", 2, 20, 4)
    rows, first = ops.list_rows(gates)
    flat = gates.reshape(-1, 4)
    expected = torch.cat([flat[:, h].nonzero().flatten() for h in range(4)])
    assert torch.equal(rows[: len(expected)].long(), expected) and not rows[len(expected):].any()
    assert first.tolist() == [0, *(flat != 0).sum(0).cumsum(0).tolist()]
    on = (gates != 0).double().unsqueeze(-1)
    x, wq, wo = (draw(random, *shape).float().requires_grad_() for shape in ((2, 20, 12), (4 * 8, 12), (12, 4 * 8)))
    bias = draw(random, 32).float().requires_grad_()
    over = [x, wq, wo, bias]
    doubles = [t.detach().double().requires_grad_() for t in over]
    heads = ops.project_heads(x, wq, bias, gates, rows, first)
    out = ops.combine_heads(heads, wo, None, gates, rows, first)
    a, b, c, d = doubles
    want_heads = ((a @ b.T + d).unflatten(-1, (4, 8))) * on
    want = want_heads.flatten(-2) @ c.T
    close("project_heads", heads.detach(), want_heads.detach(), 1e-5)
    close("combine_heads", out.detach(), want.detach(), 1e-5)
    for got, expected in zip(torch.autograd.grad(out.square().sum(), over), torch.autograd.grad(want.square().sum(), doubles)):
        close("gradient of projections", got, expected, 4e-5)
    query, pool = draw(random, 9, 4, 16).float(), draw(random, 6, 16, 2, 16).float()
    sequences, pages = torch.tensor([[0, 6, 40], [6, 1, 20]]), torch.tensor([[3, 0, 5], [1, 2, 0]], dtype=torch.int32)
    gates = draw_gates(random, "some", 9, 4)
    out = ops.head_attention_paged(query, pool, pool, gates, sequences, pages)
    for (begin, length, keys), table in zip(sequences.tolist(), pages):
        k = pool[table.long()].flatten(0, 1)[:keys].unsqueeze(0).double()
        own = slice(begin, begin + length)
        close("paged", out[own], formula(query[None, own].double(), k, k, gates[None, own].double(), causal=True)[0][0], 1e-5)
    assert not out[7:].any()


CHECKS = [check_operator, check_library, check_compiles, check_lists, check_attention, check_sequences, check_extremes, check_projections, check_no_waiting]


def main():
    every = "--all" in sys.argv
    warnings.filterwarnings("ignore")
    if "--inside-library" in sys.argv:
        return inside_library()
    if "--inside-compiler" in sys.argv:
        return inside_compiler()
    named = [name for name in sys.argv[1:] if name.startswith("check_")]
    failures = 0
    for check in CHECKS:
        if named and check.__name__ not in named:
            continue
        try:
            check(every)
        except AssertionError as error:
            failures += 1
            print("FAILED", f"{check.__name__}: {error}")
    print(f"triton: {len(CHECKS) - failures} of {len(CHECKS)} checks passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
