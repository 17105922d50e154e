"""The package python/moh: the operator beside its formula in fp64 and torch's checks, MoHAttention beside
torch.nn.MultiheadAttention, timm's and diffusers' attention converted, models registered with transformers, DTensor.
Usage: package_test.py BUILD; MOH_LIBRARY names the kernels."""

import copy
import math
import os
import pathlib
import sys
import threading
import warnings

ROOT = pathlib.Path(__file__).parents[2]
if not os.environ.get("MOH_INSTALLED"):
    BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build")
    os.environ.setdefault("MOH_LIBRARY", str(BUILD / "python" / "_moh.so"))
    sys.path.insert(0, str(ROOT / "python"))

import torch  # noqa: E402

torch.set_num_threads(1)
import moh  # noqa: E402


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed + sum(shape)))


def inputs(dtype=torch.float32, batch=2, tokens=5, keys=7, heads=4, kv_heads=2, dim=8):
    gates = draw(batch, tokens, heads, seed=3)
    tensors = draw(batch, tokens, heads, dim, dtype=dtype), draw(batch, keys, kv_heads, dim, dtype=dtype, seed=1), \
        draw(batch, keys, kv_heads, dim, dtype=dtype, seed=2), torch.where(gates > -0.3, gates, 0.0)
    return [t.requires_grad_() for t in tensors]


def formula(query, key, value, gates, bias=None, causal=False, scale=None, window=0, soft_cap=0.0, sink=None):
    """Head by head in fp64."""
    query, key, value, gates = (t.double() for t in (query, key, value, gates))
    group, rows = query.shape[2] // key.shape[2], []
    for head in range(query.shape[2]):
        scores = query[:, :, head] @ key[:, :, head // group].transpose(1, 2) * (scale or query.shape[3] ** -0.5)
        scores = soft_cap * torch.tanh(scores / soft_cap) if soft_cap else scores
        if bias is not None:
            scores = scores + bias.double().expand(query.shape[0], query.shape[2], *scores.shape[1:])[:, head]
        if causal:
            tokens, keys = scores.shape[1:]
            back = torch.arange(tokens)[:, None] + keys - tokens - torch.arange(keys)[None, :]
            scores = scores.masked_fill((back < 0) | (back >= (window or keys)), -math.inf)
        if sink is not None:
            scores = torch.cat([scores, sink.double()[head].expand(*scores.shape[:2], 1)], -1)
        weights = scores.softmax(-1)[..., : key.shape[1]]
        rows.append(weights @ value[:, :, head // group] * gates[:, :, head, None])
    return torch.stack(rows, 2)


def close(got, expected, what, tolerance=1e-5):
    error = (got.double() - expected.double()).abs().max().item()
    assert error <= tolerance, f"{what}: off by {error:.3g}"


def refused(call, *parts):
    try:
        call()
    except (ValueError, RuntimeError, TypeError) as error:
        assert all(part in str(error) for part in parts), f"the error should name {parts}: {error}"
        return
    raise AssertionError(f"not refused: {parts}")


def check_operator():
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-9), (torch.bfloat16, 5e-2)):
        tensors = inputs(dtype)
        for options in ({}, {"causal": True, "scale": 0.2, "bias": draw(4, 5, 7, dtype=dtype).requires_grad_()},
                        {"causal": True, "window": 3, "soft_cap": 2.0, "sink": draw(4).requires_grad_()}):
            torch.library.opcheck(torch.ops.moh.head_attention.default, tuple(tensors), options)
            expected = formula(*tensors, **options)
            out = moh.head_attention(*tensors, **options)
            close(out, expected, f"{dtype}", tolerance)
            over = tensors + [t for t in options.values() if isinstance(t, torch.Tensor)]
            wanted = torch.autograd.grad(expected.square().sum(), over)
            for got, want, of in zip(torch.autograd.grad(out.double().square().sum(), over), wanted, over):
                want = torch.where(tensors[3] == 0, 0, want) if of is tensors[3] else want  # gates that are zero have none
                close(got, want, f"{dtype}, gradient", tolerance * 20)


def check_masks():
    tensors = inputs(tokens=7)
    tensors[3] = torch.ones_like(tensors[3])
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    mask[0, 0] = True
    q, k, v = (t.transpose(1, 2) for t in tensors[:3])
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    close(moh.head_attention(*tensors, bias=mask), expected, "bool mask")
    refused(lambda: moh.head_attention(*tensors, bias=mask.long()), "bool mask", "got")
    nothing = torch.zeros(7, 7, dtype=torch.bool)
    assert not moh.head_attention(*tensors, bias=nothing).any(), "rows that see no key are zero"


def check_paged():
    """Sequences in pages, each as alone by the formula: a prompt's chunk beside decoding ones, keys that lie scattered."""
    lengths, queries, page = (9, 1, 17), (4, 1, 1), 4
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-9), (torch.bfloat16, 5e-2)):
        pool = draw(12, 2, page, 16, dtype=dtype)  # [P, Hkv, page, 2 D], as in vLLM
        key, value = pool.transpose(1, 2).split(8, -1)
        pages = torch.tensor([[7, 2, 5, 0, 0], [1, 0, 0, 0, 0], [9, 3, 11, 0, 4]], dtype=torch.int32)
        query, gates = draw(7, 4, 8, dtype=dtype), draw(7, 4, seed=1)
        gates = torch.where(gates > 0, gates, 0.0)
        sequences = torch.tensor([[0, 4, 9], [4, 1, 1], [5, 1, 17]])
        for options in ({}, {"window": 3, "scale": 0.3, "soft_cap": 2.0}, {"sink": draw(4)}):
            got = torch.ops.moh.head_attention_paged(query, key, value, gates, sequences, pages, **options)
            torch.library.opcheck(torch.ops.moh.head_attention_paged.default, (query, key, value, gates, sequences, pages), options)
            first = 0
            for row, (keys, rows) in enumerate(zip(lengths, queries)):
                own = [torch.stack([tensor[pages[row, s // page], s % page] for s in range(keys)]) for tensor in (key, value)]
                here = slice(first, first + rows)
                expected = formula(query[None, here], own[0][None], own[1][None], gates[None, here], causal=True, **options)[0]
                close(got[here], expected, f"pages, {dtype}, {list(options)}, sequence {row}", tolerance)
                first += rows
            assert not got[6].any(), "a row of no sequence is zero"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            wanted = torch.float64 if dtype == torch.float64 else torch.bfloat16
            assert torch.ops.moh.head_attention_paged(query, key, value, gates, sequences, pages).dtype == wanted
    query, (key, value) = query.float(), (t.float() for t in (key, value))
    for wrong in (torch.tensor([[0, 8, 9]] * 3), torch.tensor([[0, 4, 21]] * 3), sequences.int(), sequences[:2]):
        refused(lambda: torch.ops.moh.head_attention_paged(query, key, value, gates, wrong, pages), "head_attention_paged")
    refused(lambda: torch.ops.moh.head_attention_paged(query, key, value, gates, sequences, pages + 3), "outside the pool")


def check_vllm_versions():
    from moh.vllm import unsupported_reason

    assert not unsupported_reason("0.32.0") and not unsupported_reason("0.32.3+cpu")
    for version in ("0.31.9", "0.33.0", "1.0", "0.9.2.post2"):
        assert version in unsupported_reason(version) and "0.32" in unsupported_reason(version)


def check_second_derivative():
    q, k, v = (draw(1, 3, 4, 2, dtype=torch.float64, seed=i).requires_grad_() for i in range(3))
    gates = draw(1, 3, 4, dtype=torch.float64).abs().add(0.5).requires_grad_()
    bias = draw(4, 3, 3, dtype=torch.float64).requires_grad_()
    call = lambda q, k, v, g, b: moh.head_attention(q, k, v, g, bias=b, causal=True)  # noqa: E731
    assert torch.autograd.gradcheck(call, (q, k, v, gates, bias))
    assert torch.autograd.gradgradcheck(call, (q, k, v, gates, bias))
    tensors = inputs(keys=5)
    shared = tensors[0]  # query and key from one tensor
    def penalty(f):
        (grad,) = torch.autograd.grad(f(shared, shared[:, :, :2], *tensors[2:]).square().sum(), shared, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), shared)[0]
    close(penalty(moh.head_attention), penalty(formula), "gradient penalty in fp32", 2e-2)
    def with_sink():
        out = moh.head_attention(*tensors, sink=torch.zeros(4, requires_grad=True))
        torch.autograd.grad(out.sum(), shared, create_graph=True)
    refused(with_sink, "second derivative", "sink")


def check_autocast():
    tensors = inputs()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            out = moh.head_attention(tensors[0], tensors[1], tensors[2].to(dtype), tensors[3])
        assert out.dtype == dtype
        close(out, formula(*tensors), f"autocast, {dtype}", 5e-2)
        out.float().sum().backward()
        assert tensors[0].grad.dtype == torch.float32


def check_compile():
    tensors = inputs()
    call = lambda *t: moh.head_attention(*t, causal=True).square().sum()  # noqa: E731
    expected = torch.autograd.grad(call(*tensors), tensors)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for got, want in zip(torch.autograd.grad(compiled(*tensors), tensors), expected):
        close(got, want, "torch.compile")
    layer = moh.nn.MoHAttention(16, 4, shared_heads=1, top_k=2)
    x = draw(2, 6, 16)
    compiled = torch.compile(lambda x: layer(x, is_causal=True)[0], backend="aot_eager", fullgraph=True)
    close(compiled(x), layer(x, is_causal=True)[0], "torch.compile of MoHAttention")


def check_multihead():
    """All heads on with gates of one is torch's layer, for every mask and form of call."""
    mask, padding = torch.ones(6, 6, dtype=torch.bool).triu(1), torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    for options in ({}, {"batch_first": True}, {"bias": False, "batch_first": True}, {"kdim": 12, "vdim": 20, "batch_first": True}):
        torch.manual_seed(1)
        dense = torch.nn.MultiheadAttention(16, 4, **options)
        ours = moh.nn.MoHAttention.from_dense(dense, shared_heads=4, top_k=0, router="norm")
        first = options.get("batch_first", False)
        q, k, v = draw(2, 6, 16), draw(2, 6, options.get("kdim", 16), seed=1), draw(2, 6, options.get("vdim", 16), seed=2)
        q, k, v = (t if first else t.transpose(0, 1) for t in (q, k, v))
        for call in ({}, {"attn_mask": mask}, {"attn_mask": mask, "is_causal": True}, {"key_padding_mask": padding},
                     {"attn_mask": draw(8, 6, 6), "key_padding_mask": padding}, {"attn_mask": mask.float() * -9}):
            expected, weights = dense(q, k, v, need_weights=True, **call)
            got, shown = ours(q, k, v, need_weights=True, **call)
            close(got, expected, f"MultiheadAttention {options}, {list(call)}")
            close(shown, weights, f"weights of MultiheadAttention {options}, {list(call)}")
            close(ours(q, k, v, **call)[0], expected, f"MultiheadAttention {options}, {list(call)}, kernel")
    single = draw(6, 16)
    close(moh.nn.MoHAttention.from_dense(torch.nn.MultiheadAttention(16, 4), shared_heads=4, top_k=0)(single)[0].sum() * 0,
          torch.tensor(0.0), "an input without batch")


def check_routers():
    """Gates beside formulas, and the whole layer beside explicit heads in fp64."""
    for router, form in (("two-stage", "paper"), ("two-stage", "authors"), ("norm", "paper")):
        torch.manual_seed(2)
        layer = moh.nn.MoHAttention(16, 4, shared_heads=2, top_k=1, router=router, form=form, num_kv_heads=2).double()
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        x = draw(2, 5, 16, dtype=torch.float64)
        wq, wk, wv = layer.in_proj_weight.split([16, 8, 8])
        bq, bk, bv = layer.in_proj_bias.split([16, 8, 8])
        q, k, v = ((x @ w.T + b).unflatten(-1, (-1, 4)) for w, b in ((wq, bq), (wk, bk), (wv, bv)))
        gates = torch.zeros(2, 5, 4, dtype=torch.float64)
        for place in torch.cartesian_prod(torch.arange(2), torch.arange(5)):
            place = tuple(place)
            if router == "norm":
                gates[place][:2] = 1
                gates[place][2 + q[place][2:].norm(dim=-1).argmax()] = 1
                continue
            kind, among = (layer.router.wg_0.weight @ x[place]).softmax(0), (layer.router.wg.weight @ x[place]).softmax(0)
            gates[place][:2] = (layer.router.wg_1.weight @ x[place]).softmax(0) * kind[0]
            gates[place][2 + among.argmax()] = among.max() * kind[1]
            if form == "authors":  # factors 2 shared heads, 2 kinds; one routed head renormalised to 1
                gates[place][:2] *= 4
                gates[place][2 + among.argmax()] = kind[1] * 2
        expected = formula(q, k, v, gates, causal=True).flatten(-2) @ layer.out_proj.weight.T + layer.out_proj.bias
        close(layer(x, is_causal=True)[0], expected, f"{router}, {form}")
        with moh.nn.balance_losses() as losses:
            layer(x, is_causal=True)
        chosen = (gates[..., 2:] != 0).double().mean((0, 1))
        routing = layer.router(x, q)
        expected = (routing.probabilities.mean((0, 1)) * chosen).sum() * (2 if form == "authors" else 1)
        assert len(losses) == 1
        close(losses[0], expected, "load-balance loss")
        assert layer(x, is_causal=True)[0].requires_grad and torch.autograd.grad(losses[0], layer.in_proj_weight, allow_unused=True)
    for bad in (dict(shared_heads=5, top_k=0), dict(shared_heads=0, top_k=0), dict(shared_heads=1, top_k=4)):
        refused(lambda: moh.nn.MoHAttention(16, 4, **bad), "must be in")
    refused(lambda: moh.nn.MoHAttention(16, 4, shared_heads=1, top_k=1, router="magic"), "magic")


def check_layer_in_use():
    layer = moh.nn.MoHAttention(16, 4, shared_heads=1, top_k=2, dropout=0.1)
    x = draw(4, 6, 16)
    copy.deepcopy(layer)(x)[0].sum().backward()
    layer.eval()
    with torch.no_grad():
        alone, results = layer(x)[0], [None] * 4
        def work(i):
            results[i] = layer(x)[0]
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
    assert all(torch.equal(r, alone) for r in results)
    layer.train()
    optimizer, target = torch.optim.AdamW(layer.parameters(), lr=1e-2), draw(4, 6, 16, seed=9)
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", dtype=torch.bfloat16), moh.nn.balance_losses() as balance:
            loss = (layer(x, is_causal=True)[0].float() - target).square().mean()
        optimizer.zero_grad()
        (loss + 0.01 * sum(balance)).backward()
        assert layer.router.wg.weight.grad.abs().max() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses


def check_timm():
    import timm
    from timm.layers.attention import Attention

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=10, depth=2).eval()
    x, names = draw(2, 3, 32, 32), set(model.state_dict())
    expected = model(x)
    moh.timm.convert(copy.deepcopy(model), shared_heads=1, top_k=1)
    dense = copy.deepcopy(model)
    assert moh.timm.convert(dense, shared_heads=3, top_k=0, router="norm") == 2
    close(dense(x), expected, "timm, every head on", 1e-4)
    moh.timm.convert(model, shared_heads=1, top_k=1)
    assert names < set(model.state_dict()) and (model(x) - expected).abs().max() > 1e-3
    model.train()(x).sum().backward()
    assert model.blocks[0].attn.router.wg.weight.grad is not None
    refused(lambda: moh.timm.convert(model, shared_heads=1, top_k=1), "no timm Attention")
    for options in (dict(qk_norm=True, norm_layer=torch.nn.LayerNorm), dict(qkv_bias=True, gated=True), dict(scale_norm=True, norm_layer=torch.nn.LayerNorm)):
        layer = Attention(24, 4, **options).eval()
        x, mask = draw(2, 5, 24), torch.ones(5, 5, dtype=torch.bool).tril()
        ours = moh.timm.MoHAttention.from_dense(layer, shared_heads=4, top_k=0, router="norm")
        close(ours(x, attn_mask=mask), layer(x, attn_mask=mask), f"timm {list(options)}")
        close(ours(x, is_causal=True), layer(x, is_causal=True), f"timm {list(options)}, causal")


def check_diffusers():
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(num_attention_heads=4, attention_head_dim=8, in_channels=3, out_channels=3, num_layers=2,
                                  sample_size=8, patch_size=2, num_embeds_ada_norm=10, norm_num_groups=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    call = dict(timestep=torch.tensor([3, 7]), class_labels=torch.tensor([1, 2]))
    x = draw(2, 3, 8, 8)
    expected = model(x, **call).sample
    dense = copy.deepcopy(model)
    assert moh.diffusers.convert(dense, shared_heads=4, top_k=0, router="norm") == 2
    close(dense(x, **call).sample, expected, "diffusers, every head on", 1e-4)
    moh.diffusers.convert(model, shared_heads=1, top_k=1)
    assert (model(x, **call).sample - expected).abs().max() > 1e-3
    model.train()(x, **call).sample.sum().backward()
    assert any("router.wg.weight" in name and p.grad is not None for name, p in model.named_parameters())


def check_transformers():
    import re

    table = (ROOT / "moh" / "models" / "llama_family.cpp").read_text()
    rows = dict(re.findall(r'\.model_type = "(\w+)".*?\.architecture = "(\w+)ForCausalLM"', table, re.S))
    assert moh.transformers.FAMILIES.items() <= rows.items(), f"moh/models/llama_family.cpp has {rows}"
    moh.transformers.register()
    import pickle

    import transformers

    for family in moh.transformers.FAMILIES:  # processes hand configurations to one another
        config = moh.transformers.modeling(family).MohConfig()
        assert type(pickle.loads(pickle.dumps(config))) is type(config) and config.model_type == f"moh_{family}"

    config = transformers.AutoConfig.for_model("moh_llama", vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                               num_attention_heads=4, moh={"router": "norm", "shared_heads": 1, "top_k": 2})
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert type(model.model.layers[0].self_attn).__name__ == "MohAttention"
    refused(lambda: moh.transformers.register("gpt9"), "gpt9", "llama")


def sharded_rank(rank, store):
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    moh.sharding.register()
    mesh = init_device_mesh("cpu", (2,))
    tensors = inputs()
    bias = draw(4, 5, 7).requires_grad_()
    def run(tensors, bias):
        out = moh.head_attention(*tensors, bias=bias, causal=True)
        return out, torch.autograd.grad(out.square().sum(), [*tensors, bias])
    expected, grads = run(tensors, bias)
    for place, bias_place in ((Shard(2), Shard(0)), (Shard(0), Replicate()), (Replicate(), Replicate())):
        split = [distribute_tensor(t.detach(), mesh, [place]).requires_grad_() for t in tensors]
        out, got = run(split, distribute_tensor(bias.detach(), mesh, [bias_place]).requires_grad_())
        assert isinstance(out, DTensor) and out.placements == (place,), f"{place} became {out.placements}"
        assert out.to_local().numel() * (1 if place == Replicate() else 2) == expected.numel()
        close(out.full_tensor(), expected, f"DTensor {place}")
        for a, b in zip(got, grads):
            close(a.full_tensor(), b, f"gradient of DTensor {place}")
    # One KV head cannot be split: rather gathered than wrong.
    few = inputs(kv_heads=1)
    split = [distribute_tensor(t.detach(), mesh, [Replicate() if i in (1, 2) else Shard(2)]) for i, t in enumerate(few)]
    close(moh.head_attention(*split).full_tensor(), moh.head_attention(*few), "one KV head")
    dist.destroy_process_group()
    # torch's own threads may still ask for Python's lock while the interpreter goes down, which aborts the process.
    sys.stdout.flush()
    os._exit(0)


def check_sharding():
    import tempfile

    import torch.multiprocessing as processes

    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(sharded_rank, (str(pathlib.Path(folder) / "store"),), nprocs=2)


def check_available():
    parts = moh.available()
    assert parts["kernels"] == "", parts["kernels"]
    import subprocess

    script = ("import torch, warnings, moh; warnings.simplefilter('error'); t = torch.ones(1, 2, 1, 4)\n"
              "print(moh.available()['kernels'])\n"
              "try: moh.head_attention(t, t, t, torch.ones(1, 2, 1))\nexcept UserWarning as w: print('warned:', w)")
    env = {**os.environ, "MOH_LIBRARY": "/nowhere/_moh.so", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert "/nowhere/_moh.so does not exist" in run.stdout.splitlines()[0], run.stdout + run.stderr
    assert "warned:" in run.stdout and "every head" in run.stdout, run.stdout + run.stderr


def check_old_torch():
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "torch.py").write_text("__version__ = '2.9.1'\n")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *(p for p in sys.path if p)])}
        run = subprocess.run([sys.executable, "-c", "import moh"], env=env, capture_output=True, text=True)
    assert run.returncode and "moh needs torch 2.10 or newer, this is torch 2.9.1" in run.stderr, run.stderr


CHECKS = [check_available, check_old_torch, check_operator, check_paged, check_vllm_versions, check_masks, check_second_derivative, check_autocast, check_compile, check_multihead,
          check_routers, check_layer_in_use, check_timm, check_diffusers, check_transformers, check_sharding]


def main():
    warnings.filterwarnings("ignore")
    failures, skipped = [], 0
    for check in CHECKS:
        if len(sys.argv) > 2 and check.__name__ not in sys.argv[2:]:
            continue
        try:
            check()
        except ImportError as error:
            print(f"{check.__name__} not run: {error}")
            skipped += 1
        except RuntimeError as error:
            if "torchvision::" not in str(error):  # a torchvision that does not fit this torch
                raise
            print(f"{check.__name__} not run: {error}")
            skipped += 1
        except AssertionError as error:
            failures.append(f"{check.__name__}: {error}")
    for failure in failures:
        print("FAILED", failure)
    print(f"package: {len(CHECKS) - len(failures) - skipped} of {len(CHECKS)} checks passed, torch {torch.__version__}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
