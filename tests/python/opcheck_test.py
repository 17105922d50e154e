"""Every operator passes torch.library.opcheck, and behaves from Python as its docstring says."""

import pathlib
import sys

import torch

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2] / "build")
torch.ops.load_library(str(BUILD / "libmoh.so"))
moh = torch.ops.moh


def leaf(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def gates_of(batch, tokens, heads):
    return ((torch.rand(batch, tokens, heads) < 0.6) * torch.rand(batch, tokens, heads)).requires_grad_()


def cases():
    """(operator, args, kwargs) for every operator of the library."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        qkv = leaf(2, 5, 4, 8, dtype=dtype), leaf(2, 7, 2, 8, dtype=dtype), leaf(2, 7, 2, 8, dtype=dtype)
        gates = gates_of(2, 5, 4)
        yield moh.head_attention, (*qkv, gates), {}
        yield moh.head_attention, (*qkv, gates), {"causal": True, "scale": 0.2, "bias": leaf(4, 5, 7, dtype=dtype)}
        yield moh.head_attention, (*qkv, gates), {"causal": True, "window": 3, "soft_cap": 2.0, "sink": leaf(4)}
        yield moh.head_attention_forward, (*qkv, gates, None, True, None), {}
    query, key, value = (torch.randn(1, 6, 2, 8) for _ in range(3))
    gates = gates_of(1, 6, 2).detach()
    out, lse = moh.head_attention_forward(query, key, value, gates, None, False, None)
    for bias in (None, torch.randn(2, 6, 6)):
        yield (moh.head_attention_backward,
               (torch.randn_like(out), query, key, value, gates, bias, out, lse, False, None, bias is not None), {})
    pages = torch.tensor([[2, 0], [1, 1]], dtype=torch.int32)  # of 4 keys; rows 0 to 2 see 7 keys, row 3 sees 2
    yield moh.head_attention_paged, (query[0], *torch.randn(2, 3, 4, 2, 8), gates[0],
                                     torch.tensor([[0, 3, 7], [3, 1, 2]]), pages), {}
    yield moh.list_rows, (gates,), {}
    gates = gates_of(2, 5, 4).detach()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for bias in (None, leaf(32, dtype=dtype)):
            yield moh.project_heads, (leaf(2, 5, 6, dtype=dtype), leaf(32, 6, dtype=dtype), bias, gates), {}
            rows, first = moh.list_rows(gates)
            yield (moh.project_heads, (leaf(2, 5, 6, dtype=dtype), leaf(32, 6, dtype=dtype), bias, gates),
                   {"rows": rows, "first": first})
            yield moh.combine_heads, (leaf(2, 5, 4, 8, dtype=dtype), leaf(32, 32, dtype=dtype), bias, gates), {}
        for transposed in (False, True):
            yield (moh.head_weight_gradient,
                   (torch.randn(2, 5, 4, 8, dtype=dtype), torch.randn(2, 5, 6, dtype=dtype), gates, transposed), {})
    for dtype in (torch.float32, torch.float64, torch.bfloat16):  # a 3 x 4 map, 2 pooled keys, a 3 x 3 window
        rows = tuple(leaf(2, n, 3, 4, dtype=dtype) for n in (12, 12, 12, 2, 2))
        tables = leaf(3, 4), (torch.rand(3) + 1).requires_grad_(), leaf(3, 9), leaf(3, 12, 2), leaf(3, 4, 9), leaf(3, 9)
        inputs = *rows, gates_of(2, 12, 3), *tables, torch.rand(12) + 1, 3, 4, 3
        yield moh.aggregated_attention, inputs, {}
        detached = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in inputs)
        yield moh.aggregated_attention_backward, (torch.randn(2, 12, 3, 4, dtype=dtype), *detached), {}
        inputs = leaf(2, 12, 10, dtype=dtype), leaf(5, 1, 3, 3), leaf(5), 3, 4
        yield moh.gated_convolution, inputs, {}
        yield (moh.gated_convolution_backward,
               (torch.randn(2, 12, 5, dtype=dtype), *(t.detach() for t in inputs[:3]), 3, 4), {})
    yield moh.select_top_k, (torch.randn(3, 5), 2), {}
    for authors in (False, True):
        yield moh.two_stage_gates, (torch.randn(2, 3, 10), 3, 5, 2, authors), {}
    x, wg, wg_1, wg_0 = leaf(2, 3, 6), leaf(5, 6), leaf(3, 6), leaf(2, 6)
    for form in ("paper", "authors"):
        yield moh.route_two_stage, (x, wg, wg_1, wg_0), dict(num_heads=8, shared_heads=3, top_k=2, form=form)
        yield moh.load_balance_loss, (torch.rand(4, 5).requires_grad_(), torch.randint(5, (4, 2))), {"form": form}
    yield moh.route_query_norm, (leaf(2, 3, 8, 4),), dict(shared_heads=4, top_k=2)
    weights = leaf(3 * 32, 6), None, leaf(6, 32), leaf(6)
    yield moh.moh_attention, (x, *weights, wg, wg_1, wg_0), dict(num_heads=8, shared_heads=3, top_k=2)


def refused(call, *parts):
    try:
        call()
    except RuntimeError as error:
        assert all(part in str(error) for part in parts), f"the error should name {parts}: {error}"
        return
    raise SystemExit(f"not refused: {parts}")


def check_autocast():
    """Every operator under autocast as torch's own: attention in the autocast type whatever the types of its inputs, routing in
    fp32, gradients in the types of the inputs."""
    for dtype in (torch.bfloat16, torch.float16):
        query, key, value, gates = leaf(1, 5, 4, 8), leaf(1, 5, 2, 8), leaf(1, 5, 2, 8).to(dtype).detach().requires_grad_(), gates_of(1, 5, 4)
        plain = moh.head_attention(query, key, value.float(), gates, causal=True)
        with torch.autocast("cpu", dtype=dtype):
            out = moh.head_attention(query, key, value, gates, causal=True, bias=torch.zeros(5, 5))
        assert out.dtype == dtype and torch.allclose(out.float(), plain, atol=0.05), (out.float() - plain).abs().max()
        out.float().sum().backward()
        assert query.grad.dtype == torch.float32 and value.grad.dtype == dtype
        with torch.autocast("cpu", dtype=dtype):
            assert moh.two_stage_gates(torch.randn(2, 3, 10).to(dtype), 3, 5, 2, True)[0].dtype == torch.float32
            assert moh.load_balance_loss(torch.rand(4, 5).to(dtype), torch.randint(5, (4, 2))).dtype == torch.float32
            assert moh.gated_convolution(leaf(2, 12, 10), leaf(5, 1, 3, 3), leaf(5), 3, 4).dtype == dtype
            assert moh.combine_heads(leaf(2, 5, 4, 8), leaf(6, 32), None, gates_of(2, 5, 4).detach()).dtype == dtype
    # Each case in fp32 with autocast on: no operator stumbles over types that another one made.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for operator, args, kwargs in cases():
            if all(t.dtype != torch.float64 for t in args if isinstance(t, torch.Tensor)):
                operator(*args, **kwargs)


def check_masks():
    query, key, value, gates = leaf(2, 6, 4, 8), leaf(2, 6, 4, 8), leaf(2, 6, 4, 8), torch.ones(2, 6, 4)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    expected = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)), attn_mask=mask)
    assert torch.allclose(moh.head_attention(query, key, value, gates, bias=mask), expected.transpose(1, 2), atol=1e-5)
    for dtype in (torch.int64, torch.uint8):
        refused(lambda: moh.head_attention(query, key, value, gates, bias=mask.to(dtype)), "bool mask")


def check_second_derivatives():
    """Right, or refused in words; never a silent zero."""
    wide = {"dtype": torch.float64}
    qkv = leaf(1, 4, 4, 2, **wide), leaf(1, 4, 2, 2, **wide), leaf(1, 4, 2, 2, **wide)
    gates, bias = (torch.rand(1, 4, 4, **wide) + 0.5).requires_grad_(), leaf(4, 4, 4, **wide)
    assert torch.autograd.gradgradcheck(lambda q, k, v, g, b: moh.head_attention(q, k, v, g, bias=b, causal=True), (*qkv, gates, bias))
    assert torch.autograd.gradgradcheck(
        lambda q, k, v, g: moh.head_attention(q, k, v, g, causal=True, window=2, soft_cap=1.5, sink=torch.zeros(4, **wide)), (*qkv, gates))
    chosen = gates_of(1, 4, 4).detach().double()
    assert torch.autograd.gradgradcheck(lambda x, w, b: moh.project_heads(x, w, b, chosen), (leaf(1, 4, 3, **wide), leaf(8, 3, **wide), leaf(8, **wide)))
    assert torch.autograd.gradgradcheck(lambda h, w, b: moh.combine_heads(h, w, b, chosen), (leaf(1, 4, 4, 2, **wide), leaf(3, 8, **wide), leaf(3, **wide)))

    def penalty(attention, *inputs):
        (grad,) = torch.autograd.grad(attention(*inputs).square().sum(), inputs[0], create_graph=True)
        return torch.autograd.grad(grad.square().sum(), inputs[:3])

    def plain(q, k, v, g):
        weights = (torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5).softmax(-1)
        return torch.einsum("bhts,bshd->bthd", weights, v) * g.unsqueeze(-1)

    inputs = [*(leaf(1, 5, 2, 8) for _ in range(3)), torch.rand(1, 5, 2) + 0.5]  # fp32, where the kernels compute
    for got, want in zip(penalty(moh.head_attention, *inputs), penalty(plain, *inputs)):
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-4), (got - want).abs().max()

    def twice(operator, args):
        first = next(a for a in args if isinstance(a, torch.Tensor) and a.requires_grad)
        (grad,) = torch.autograd.grad(operator(*args).square().sum(), first, create_graph=True)
        torch.autograd.grad(grad.square().sum(), first)

    for operator, args, _ in cases():
        if operator in (moh.aggregated_attention, moh.gated_convolution):
            refused(lambda: twice(operator, args), "derivative", "not implemented")
    sink = torch.zeros(2, requires_grad=True)
    refused(lambda: twice(lambda *a: moh.head_attention(*a, sink=sink), inputs), "second derivative", "sink")


def main():
    torch.manual_seed(0)
    checked = set()
    for operator, args, kwargs in cases():
        torch.library.opcheck(operator.default, args, kwargs)
        checked.add(operator.default.name())
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("moh::")}
    assert registered == checked, f"operators without a check: {registered - checked}"

    # Gradients by torch's own finite differences; a skipped head's gate is documented to have none.
    query, key, value = leaf(1, 3, 4, 2, dtype=torch.float64), *(leaf(1, 5, 2, 2, dtype=torch.float64) for _ in range(2))
    gates = torch.rand(1, 3, 4, dtype=torch.float64) + 0.5
    gates.requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: moh.head_attention(*a, causal=True), (query, key, value, gates))

    skipped = torch.zeros(1, 3, 4)
    assert not moh.head_attention(query.float(), key.float(), value.float(), skipped).any()
    try:
        moh.head_attention(query, key, value, gates[:, :2])
        raise SystemExit("a wrong shape must be an error")
    except RuntimeError as error:
        assert "gates must be [B, T, H]" in str(error), error
    check_autocast()
    check_masks()
    check_second_derivatives()
    print(f"opcheck: {len(checked)} operators passed: {', '.join(sorted(checked))}")


if __name__ == "__main__":
    main()
