"""The launches of the C++ library (moh/kernels/gpu) on a machine without a GPU. A stand-in for the driver takes them: it looks
whether image, threads, shared memory and arguments fit what the machine code says of itself. Here each launch is laid beside
that of triton/launch.py for the same call (kernel, grid, every value and constant), then computed in Triton's interpreter from
the very arguments that C++ passed; results are compared with the formula in float64.
Usage: gpu_launch_test.py BUILD"""

import ctypes
import importlib.util
import inspect
import json
import math
import os
import pathlib
import struct
import subprocess
import sys

BUILD = pathlib.Path(sys.argv[1]).resolve()
ROOT = pathlib.Path(__file__).parents[2]
if not (BUILD / "gpu_kernels" / "kernels.json").exists() or importlib.util.find_spec("triton") is None:
    print("skipped: this build has no GPU kernels (MOH_TRITON)")
    sys.exit(77)
os.environ |= {"TRITON_INTERPRET": "1", "MOH_LIBRARY": "/nowhere/_moh.so"}
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests" / "python")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.runtime.interpreter import GridExecutor, InterpretedFunction, TensorHandle  # noqa: E402

torch.set_num_threads(1)
import moh.gpu  # noqa: E402
from triton_test import close, draw, draw_gates, formula  # noqa: E402

launch, lists, tiles = moh.gpu.launch(), moh.gpu.kernels("lists"), moh.gpu.kernels("tiles")
ROWS = json.loads((BUILD / "gpu_kernels" / "kernels.json").read_text())
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NUMBERS = {t: i for i, t in enumerate([*DTYPES, torch.float64])}  # in the order of moh::kernels::DType
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
POINTEES = {"*fp32": tl.float32, "*bf16": tl.bfloat16, "*fp16": tl.float16, "*i32": tl.int32, "*i64": tl.int64}
CAPABILITY = int(os.environ.get("MOH_STANDIN_CAPABILITY", "0"))
STREAM = 0x5EED0


def signature_of(name):
    module = next(m for m in map(moh.gpu.kernels, ("lists", "forward", "decode", "backward", "projection")) if hasattr(m, name))
    return getattr(module, name)


class OnItsMemory(GridExecutor):
    """Triton's interpreter on addresses as they are."""

    def _init_args_hst(self, args, kwargs):
        return args, kwargs

    def _restore_args_dev(self, *args):
        pass


class FromCpp:
    """Launches that the stand-in was given."""

    def __init__(self):
        self.driver = ctypes.CDLL(str(BUILD / "standin" / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
        self.probe = ctypes.CDLL(str(BUILD / "libgpu_probe.so"))
        self.probe.probe_images.restype = ctypes.c_size_t
        for name in ("probe_unavailable", "probe_attention", "probe_projection"):
            getattr(self.probe, name).restype = ctypes.c_char_p
        self.images = self.probe.probe_images()
        self.by_offset = {row["offset"]: row for row in ROWS}
        self.launches, self.fault, self.compute = [], None, True
        listener = ctypes.CFUNCTYPE(None, ctypes.c_size_t, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_uint, ctypes.c_uint,
                                    ctypes.POINTER(ctypes.c_uint64), ctypes.c_uint, ctypes.c_size_t)
        self.listener = listener(self.listen)
        self.driver.standin_listen(self.listener)

    def listen(self, image, function, grid, threads, shared, words, count, stream):
        try:
            row = self.by_offset[image - self.images]
            assert row["function"] == function.decode() and count == len(row["parameters"]) + 2, "arguments of the machine code and of the table"
            assert (threads, shared, stream) == (32 * row["warps"], row["shared"], STREAM), f"{threads} threads, {shared} bytes, stream {stream:#x}"
            assert words[count - 2] == words[count - 1] == 0, "scratch pointers"
            values = {}
            for (name, kind, divisor), word in zip(row["parameters"], words):
                bits = struct.pack("<Q", word)
                values[name] = (word if kind.startswith("*") else struct.unpack("<f", bits[:4])[0] if kind == "fp32" else
                                struct.unpack("<q" if kind == "i64" else "<i", bits[: 8 if kind == "i64" else 4])[0])
                assert kind == "fp32" or values[name] % divisor == 0, f"{name} = {values[name]}, not a multiple of {divisor}"
            self.launches.append((row, tuple(grid[:3]), values))
            if self.compute:
                self.run(*self.launches[-1])
        except BaseException as error:  # cannot pass through C
            self.fault = self.fault or error

    def run(self, row, grid, values):
        kernel = signature_of(row["function"])
        executor = OnItsMemory(kernel.rewrite(), kernel.arg_names, grid)
        kinds = {name: kind for name, kind, _ in row["parameters"]}
        arguments = {}
        for name in kernel.arg_names:
            if name not in values:
                arguments[name] = row["constants"].get(name)
            elif kinds[name].startswith("*"):
                kind = tl.pointer_type(POINTEES[kinds[name]])
                arguments[name] = tl.tensor(TensorHandle(np.array([values[name]], dtype=np.uint64), kind), kind)
            else:
                arguments[name] = values[name]
        executor(**arguments)

    def call(self, function, arguments):
        """The launches of a call; an error of C++ as RuntimeError."""
        self.launches, self.fault = [], None
        error = getattr(self.probe, function)(ctypes.byref(arguments)).decode()
        if self.fault:
            raise self.fault
        if error:
            raise RuntimeError(error)
        assert self.driver.standin_live_blocks() == 0, "memory of the GPU was not given back"
        return self.launches


class FromPython:
    """Launches that triton/launch.py makes of the same call, with tiles of this GPU; nothing is computed."""

    def __enter__(self):
        self.launches, self.plain, self.options = [], InterpretedFunction.run, launch._options
        launch.INTERPRETED = False
        launch._options = lambda tensor, head_dim: self.options(tensor, head_dim)._replace(arch=CAPABILITY)

        def record(kernel, *arguments, grid, warmup, **named):
            values = dict(zip(kernel.arg_names, arguments)) | named
            self.launches.append((kernel.fn.__name__, grid + (1,) * (3 - len(grid)), values))

        InterpretedFunction.run = record
        return self

    def __exit__(self, *_):
        launch.INTERPRETED, launch._options, InterpretedFunction.run = True, self.options, self.plain


def compare(what, ours, theirs, inputs):
    """C++'s launches are Python's. inputs: addresses that both must pass."""
    assert [row["function"] for row, _, _ in ours] == [name for name, _, _ in theirs], f"{what}: {[row['variant'] for row, _, _ in ours]}"
    for (row, grid, values), (name, their_grid, their) in zip(ours, theirs):
        assert grid == their_grid, f"{what}, {name}: grid {grid}, Python's is {their_grid}"
        assert row["warps"] == their["num_warps"], f"{what}, {name}: warps"
        mask = (-1 if not their["CAUSAL"] else their["window"] if their["WINDOW"] else 1 << 30) if "CAUSAL" in their else 0
        paged = their.get("SEQUENCES", False)
        for parameter, value in values.items():
            expected = mask if parameter == "window" else their[parameter]
            if parameter in inputs:
                assert value == inputs[parameter], f"{what}, {name}: address of {parameter}"
            if isinstance(expected, torch.Tensor) or expected is None or (paged and parameter in ("keys", "queries")):
                continue  # work space, results, what nobody reads; of sequences the table has it
            equal = math.isclose(value, expected, rel_tol=1e-6) if isinstance(expected, float) else value == expected
            assert equal, f"{what}, {name}: {parameter} = {value}, Python's is {expected}"
        for constant, value in row["constants"].items():
            if constant in ("BLOCK_D", "CAUSAL", "WINDOW") or value is None or constant not in their:
                continue
            assert value == their[constant] or (value == 0 and their[constant] in (None, False)), f"{what}, {name}: {constant} = {value}, Python's is {their[constant]}"


def structure(title, text):
    """A ctypes structure from lines as in probe.cpp: type, then names with [n] where there are several."""
    kinds = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}
    fields = []
    for line in text.strip().splitlines():
        kind, *names = line.split()
        for name in names:
            name, _, count = name.partition("[")
            fields.append((name, kinds[kind] * int(count[:-1]) if count else kinds[kind]))
    return type(title, (ctypes.Structure,), {"_fields_": fields})


Attention = structure("Attention", """
p query key value bias gates sink grad_out out lse grad_query grad_key grad_value grad_gates grad_bias
i query_strides[4] key_strides[4] value_strides[4] bias_strides[4] grad_out_strides[4]
i batch queries keys heads kv_heads head_dim window causal dtype backward num_sequences max_queries max_keys page_size
p table pages
d scale soft_cap
p stream""")
Projection = structure("Projection", """
p x heads weight bias gates out
i x_strides[2] heads_strides[3] weight_strides[3] out_strides[3]
i num_rows num_heads head_dim width dtype which
p stream""")


def put(arguments, **tensors):
    """Addresses and strides of tensors."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        setattr(arguments, name, tensor.data_ptr())
        if hasattr(arguments, f"{name}_strides"):
            setattr(arguments, f"{name}_strides", (ctypes.c_int64 * tensor.dim())(*tensor.stride()))


# batch, queries, keys, heads, KV heads, head size, and what is special
CASES = [
    ((2, 70, 70, 4, 2, 64), dict(causal=True)),
    ((1, 70, 90, 2, 1, 72), dict()),
    ((1, 150, 150, 2, 2, 128), dict(causal=True, window=40)),
    ((1, 40, 60, 4, 2, 96), dict(causal=True, sink=True)),
    ((1, 33, 47, 2, 1, 64), dict(causal=True, bias=True)),
    ((2, 20, 40, 2, 2, 24), dict(bias=True, broadcast=True)),
    ((1, 40, 40, 2, 1, 128), dict(causal=True, soft_cap=2.0, window=9)),
    ((2, 1, 700, 4, 1, 64), dict(causal=True)),
    ((1, 3, 600, 4, 2, 128), dict(causal=True, sink=True, window=550)),
    ((1, 2, 30, 2, 2, 64), dict(soft_cap=1.5)),
    ((1, 1, 20, 2, 2, 64), dict(bias=True)),
    ((1, 9, 0, 2, 1, 64), dict()),
]


def attention_case(cpp, shape, special, dtype, seed):
    batch, tokens, keys, heads, kv_heads, dim = shape
    random = torch.Generator().manual_seed(seed)
    query, key, value, grad = (draw(random, batch, t, h, dim).to(dtype) for t, h in ((tokens, heads), (keys, kv_heads), (keys, kv_heads), (tokens, heads)))
    if seed % 2:  # [B, H, T, D] in memory
        query, key, value = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (query, key, value))
    gates = draw_gates(random, "some", batch, tokens, heads)
    causal, window, soft_cap = special.get("causal", False), special.get("window", 0), special.get("soft_cap", 0.0)
    sink = draw(random, heads).float() if special.get("sink") else None
    bias = draw(random, *((tokens, keys) if special.get("broadcast") else (batch, heads, tokens, keys))).float() if special.get("bias") else None
    given = dict(bias=bias, causal=causal, window=window, soft_cap=soft_cap)
    whole = None if bias is None else bias.expand(batch, heads, tokens, keys)
    what = f"{CAPABILITY}, {dtype}, {shape}, {special}"
    arguments = Attention(batch=batch, queries=tokens, keys=keys, heads=heads, kv_heads=kv_heads, head_dim=dim, window=window, causal=causal,
                          dtype=NUMBERS[dtype], scale=dim**-0.5, soft_cap=soft_cap, stream=STREAM)
    out, lse = torch.full_like(grad, math.nan), torch.full((batch, tokens, heads), math.nan)
    inputs = dict(query=query, key=key, value=value, gates=gates)
    put(arguments, **inputs, bias=whole, sink=sink, out=out, lse=lse)
    addresses = {name: t.data_ptr() for name, t in inputs.items()}
    ours = cpp.call("probe_attention", arguments)
    with FromPython() as python:
        launch.attention_forward(query, key, value, gates, sink=sink, **given)
    compare(what, ours, python.launches, addresses)
    variables = [t.double().requires_grad_() for t in (query, key, value, gates)]
    wide = None if whole is None else whole.double().requires_grad_()
    expected, logs = formula(*variables, bias=wide, causal=causal, window=window, soft_cap=soft_cap, sink=None if sink is None else sink.double())
    if cpp.compute:
        close(f"{what}: out", out, expected.detach(), TOLERANCE[dtype])
        close(f"{what}: lse", lse, logs.detach(), 1e-5)

    grads = [torch.full(t.shape, math.nan, dtype=t.dtype) for t in (query, key, value, gates)]
    grad_bias = torch.full((batch, heads, tokens, keys), math.nan) if special.get("broadcast") else None
    lse = logs.detach().float()
    put(arguments, grad_out=grad, lse=lse, grad_bias=grad_bias, **dict(zip(("grad_query", "grad_key", "grad_value", "grad_gates"), grads)))
    arguments.backward = 1
    ours = cpp.call("probe_attention", arguments)
    with FromPython() as python:
        launch.attention_backward(grad, query, key, value, gates, lse, bias_gradient=grad_bias is not None, **given)
    compare(f"{what}, backward", ours, python.launches, addresses | {"grad_out": grad.data_ptr(), "lse": lse.data_ptr()})
    if not cpp.compute:
        return
    over = variables + ([wide] if grad_bias is not None else [])
    wanted = [torch.zeros_like(v) if g is None else g.nan_to_num(nan=0.0) for v, g in
              zip(over, torch.autograd.grad(expected, over, grad.double(), allow_unused=True))]
    wanted[3] = torch.where(gates == 0, 0.0, wanted[3])
    for name, got, want, allowed in zip(("query", "key", "value", "gates", "bias"), grads + [grad_bias], wanted, (4, 4, 4, None, 8)):
        close(f"{what}: gradient of {name}", got, want, 4e-5 if allowed is None else allowed * TOLERANCE[dtype])


def paged_case(cpp, lengths, special, dtype, dim, seed):
    random = torch.Generator().manual_seed(seed)
    heads, kv_heads, page = 4, 2, 16
    rows, most = sum(t for t, _ in lengths), max(-(-s // page) for _, s in lengths)
    pool = draw(random, len(lengths) * most, kv_heads, page, 2 * dim).to(dtype)
    key, value = pool[..., :dim].transpose(1, 2), pool[..., dim:].transpose(1, 2)
    pages = torch.randperm(len(lengths) * most, generator=random).int().view(len(lengths), most)
    query, gates = draw(random, rows, heads, dim).to(dtype), draw_gates(random, "some", rows, heads)
    window, soft_cap = special.get("window", 0), special.get("soft_cap", 0.0)
    sink = draw(random, heads).float() if special.get("sink") else None
    first, table = 0, []
    for n, (t, s) in enumerate(lengths):
        table.append((0, first, t, s, 0, n * most))
        first += t
    table = torch.tensor(table)
    found = launch.Sequences(table, rows, most * page, pages, page)
    out, lse = torch.zeros_like(query), torch.empty(rows, heads)
    arguments = Attention(batch=1, queries=rows, keys=0, heads=heads, kv_heads=kv_heads, head_dim=dim, window=window, causal=True,
                          dtype=NUMBERS[dtype], scale=dim**-0.5, soft_cap=soft_cap, stream=STREAM, num_sequences=len(lengths),
                          max_queries=rows, max_keys=most * page, page_size=page)
    inputs = dict(query=query.unsqueeze(0), key=key, value=value, gates=gates, table=table, pages=pages)
    put(arguments, **inputs, sink=sink, out=out, lse=lse)
    what = f"{CAPABILITY}, {dtype}, pages, {lengths}, {special}"
    ours = cpp.call("probe_attention", arguments)
    with FromPython() as python:
        launch.attention_forward(query.unsqueeze(0), key, value, gates.unsqueeze(0), causal=True, window=window, soft_cap=soft_cap, sink=sink, sequences=found)
    addresses = {name: t.data_ptr() for name, t in inputs.items()} | {"sequences": table.data_ptr()}
    compare(what, ours, python.launches, addresses)
    if not cpp.compute:
        return
    for (_, begin, t, s, _, _), numbers in zip(table.tolist(), pages):
        k, v = (x[numbers.long()].flatten(0, 1)[:s].unsqueeze(0).double() for x in (key, value))
        own = slice(begin, begin + t)
        want, logs = formula(query[None, own].double(), k, v, gates[None, own].double(), causal=True, window=window, soft_cap=soft_cap,
                             sink=None if sink is None else sink.double())
        close(f"{what}: out", out[own], want[0], TOLERANCE[dtype])
        close(f"{what}: lse", lse[own], logs[0], 1e-5)


def projection_case(cpp, rows, heads, dim, width, dtype, transposed, biased, seed):
    random = torch.Generator().manual_seed(seed)
    gates = draw_gates(random, "some", rows, heads)
    on = (gates != 0).double()
    x, back = draw(random, rows, width + 16).to(dtype)[:, :width], draw(random, rows, heads, dim).to(dtype)
    spoiled = torch.where(on.unsqueeze(-1) != 0, back, math.nan)
    weight = (draw(random, width, heads * dim).t() if transposed else draw(random, heads * dim, width)).to(dtype).unflatten(0, (heads, dim))
    bias, short = (draw(random, heads, dim).to(dtype), draw(random, width).to(dtype)) if biased else (None, None)
    w = weight.double()
    calls = [
        (0, dict(x=x, weight=weight, bias=bias), torch.full((rows, heads, dim), math.nan, dtype=dtype),
         lambda out: launch.project_heads(x, weight, gates, bias),
         (torch.einsum("rc,hdc->rhd", x.double(), w) + (0 if bias is None else bias.double())) * on.unsqueeze(-1)),
        (1, dict(heads=spoiled, weight=weight, bias=short), torch.full((rows, width), math.nan, dtype=dtype),
         lambda out: launch.combine_heads(spoiled, weight, gates, short),
         torch.einsum("rhd,hdc->rc", back.double() * on.unsqueeze(-1), w) + (0 if short is None else short.double())),
        (2, dict(heads=spoiled, x=x), torch.full_like(weight, math.nan),
         lambda out: launch.weight_gradient(spoiled, x, gates, out), torch.einsum("rhd,rc->hdc", back.double() * on.unsqueeze(-1), x.double()))]
    for which, inputs, out, python_call, want in calls:
        what = f"{CAPABILITY}, {dtype}, {('project_heads', 'combine_heads', 'weight_gradient')[which]}, {rows} rows, {heads} x {dim}, width {width}, transposed {transposed}, bias {biased}"
        arguments = Projection(num_rows=rows, num_heads=heads, head_dim=dim, width=width, dtype=NUMBERS[dtype], which=which, stream=STREAM)
        put(arguments, **inputs, gates=gates, out=out.unsqueeze(-1) if which == 1 else out)
        if which == 1 and rows > tiles.FEW_ROWS:
            refused(cpp, "probe_projection", arguments, "combine_heads is built for up to 64 rows")
            continue
        ours = cpp.call("probe_projection", arguments)
        with FromPython() as python:
            python_call(out)
        compare(what, ours, python.launches, {name: t.data_ptr() for name, t in inputs.items() if t is not None})
        if cpp.compute:
            close(what, out, want, 2 * TOLERANCE[dtype] * (1 if dtype != torch.float32 else 4))


def refused(cpp, function, arguments, words):
    try:
        cpp.call(function, arguments)
    except RuntimeError as error:
        assert words in str(error), f"`{error}` does not say `{words}`"
    else:
        raise AssertionError(f"was not refused: {words}")


def check_refusals(cpp):
    """What is not built, or does not fit, is an error that names it."""
    tensor, gates = torch.zeros(1, 8, 2, 64, dtype=torch.bfloat16), torch.ones(1, 8, 2)

    def attention(words, dtype=torch.bfloat16, **changes):
        arguments = Attention(batch=1, queries=8, keys=8, heads=2, kv_heads=2, head_dim=64, dtype=NUMBERS[dtype], scale=1.0, stream=STREAM)
        put(arguments, query=tensor, key=tensor, value=tensor, gates=gates, out=torch.empty_like(tensor), lse=torch.empty_like(gates))
        for name, value in changes.items():
            setattr(arguments, name, value)
        refused(cpp, "probe_attention", arguments, words)

    attention("attention_forward-bf16-d64-bias-soft_cap is not built", bias=gates.data_ptr(), soft_cap=1.0)
    attention("attention_forward-fp16-d64-soft_cap is not built", dtype=torch.float16, soft_cap=1.0)
    attention("head size 256 is above 128", head_dim=256)
    attention("must be a multiple of 8, got 20", head_dim=20)
    attention("fp64 runs the composite form", dtype=torch.float64)
    attention("query must lie in rows that begin at multiples of 16 bytes", query=tensor.data_ptr() + 2)
    attention("key must lie in rows that begin at multiples of 16 bytes", key_strides=(ctypes.c_int64 * 4)(1024, 129, 64, 1))


def inside():
    """All launches for one kind of GPU."""
    cpp = FromCpp()
    reason = cpp.probe.probe_unavailable().decode()
    if CAPABILITY in (0, 75):
        words = {0: "the driver finds none", 75: "kernels are built for sm_80, sm_90, sm_100 and PTX of sm_80, the GPU has compute capability 7.5"}
        assert words[CAPABILITY] in reason, reason
        return
    assert not reason, reason
    new = CAPABILITY > 100  # PTX serves these with the variants of bf16 without extras
    cpp.compute = CAPABILITY == 90 or "--compute" in sys.argv  # what a kernel computes does not depend on the GPU
    check_refusals(cpp)
    calls = 0
    for seed, (shape, special) in enumerate(CASES):
        for dtype in DTYPES:
            extras = "bias" in special or "soft_cap" in special
            if (new and (dtype != torch.bfloat16 or extras)) or (dtype == torch.float16 and extras):
                continue
            attention_case(cpp, shape, special, dtype, seed)
            calls += 2
    for seed, dtype in enumerate(DTYPES if not new else DTYPES[1:2]):
        paged_case(cpp, [(1, 40), (30, 50), (1, 1), (3, 530)], dict(window=30), dtype, 64, seed)
        paged_case(cpp, [(1, 20), (1, 33)], dict(sink=True), dtype, 128, seed)
        calls += 2
        if dtype != torch.float16 and not new:
            paged_case(cpp, [(1, 20), (7, 33)], dict(soft_cap=2.0), dtype, 64, seed)
            calls += 1
        for transposed in (False, True):
            for rows, heads, dim, width in ((5, 4, 64, 40), (70, 3, 96, 72), (200, 2, 128, 64)):
                projection_case(cpp, rows, heads, dim, width, dtype, transposed, seed % 2 == transposed, seed)
                calls += 3
    print(f"sm_{CAPABILITY}: {calls} calls")


def again(part, **variables):
    run = subprocess.run([sys.executable, __file__, str(BUILD), part], env=os.environ | variables, capture_output=True, text=True)
    assert run.returncode == 0, f"{variables}: {run.stdout}{run.stderr}"
    print(run.stdout, end="")


def main():
    if "--inside" in sys.argv:
        return inside()
    if "--without-driver" in sys.argv:
        probe = ctypes.CDLL(str(BUILD / "libgpu_probe.so"))
        probe.probe_unavailable.restype = ctypes.c_char_p
        reason = probe.probe_unavailable().decode()
        assert reason.startswith("no CUDA device: ") or reason == "", reason  # the latter on a machine with a GPU
        return
    again("--without-driver")
    for capability in (0, 75, 80, 86, 90, 100, 120):
        again("--inside", MOH_STANDIN_CAPABILITY=str(capability))


if __name__ == "__main__":
    sys.exit(main())
