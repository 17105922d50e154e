"""An exported model trained by `fully_shard` (FSDP2) on two Gloo ranks, half of every batch each, is the model that one process
trains on whole batches; heads are skipped meanwhile. Usage: fsdp_test.py BUILD."""

import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build")
os.environ.setdefault("MOH_LIBRARY", str(BUILD / "python" / "_moh.so"))
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests" / "python")]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from golden_case import randomize, transformers  # noqa: E402

import moh  # noqa: E402

STEPS, BATCH, TOKENS = 5, 4, 16
SIZES = dict(vocab_size=96, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4,
             max_position_embeddings=64, tie_word_embeddings=False)
ROUTERS = {"norm": ["--activated", "0.5"], "two-stage": ["--activated", "0.75", "--router", "two-stage"]}


def batches():
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(5, 90, (BATCH, TOKENS), generator=draw) for _ in range(STEPS)]


def load(folder):
    torch.set_num_threads(1)
    moh.transformers.register("llama")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").train()


def train(model, rank=0, ranks=1):
    """Losses of this rank's parts of the batches, and how many heads of how many were computed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, eps=1e-5)
    losses, computed, original = [], [], torch.ops.moh.head_attention

    def watched(query, key, value, gates, **options):
        computed.append((gates != 0).float().mean().item())
        return original(query, key, value, gates, **options)

    torch.ops.moh.head_attention = watched
    try:
        for ids in batches():
            part = ids.chunk(ranks)[rank]
            loss = model(part, labels=part, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    finally:
        torch.ops.moh.head_attention = original
    return losses, computed


def sharded(rank, store, folder, out):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model, mesh = load(folder), init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    parameters = list(model.parameters())
    assert all(isinstance(p, DTensor) for p in parameters)
    assert sum(p.to_local().numel() for p in parameters) <= 0.6 * sum(p.numel() for p in parameters), "a rank holds about half"
    losses, computed = train(model, rank, 2)
    losses = torch.tensor(losses)
    dist.all_reduce(losses)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save({"losses": losses / 2, "state": state, "computed": computed}, out)
    dist.barrier()
    dist.destroy_process_group()
    # torch's own threads may still ask for Python's lock while the interpreter goes down, which aborts the process.
    sys.stdout.flush()
    os._exit(0)


def main():
    assert not moh.available()["kernels"], moh.available()["kernels"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        dense = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
        randomize(dense, 7)
        dense.save_pretrained(folder / "dense")
        for router, options in ROUTERS.items():
            for arguments in (["dense", f"{router}_moh", *options], ["--export", "hf", f"{router}_moh", router]):
                subprocess.run([str(BUILD.resolve() / "moh"), "convert", *arguments, "--threads", "1"], check=True, capture_output=True, cwd=folder)
            out = folder / f"{router}.pt"
            torch.multiprocessing.spawn(sharded, (str(folder / f"{router}_store"), str(folder / router), str(out)), nprocs=2)
            got, model = torch.load(out), load(folder / router)
            before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
            losses, _ = train(model)
            error = (got["losses"] - torch.tensor(losses)).abs().max().item()
            assert error < 1e-5, f"{router}: losses {got['losses'].tolist()} on two ranks, {losses} on one"
            assert got["computed"] and max(got["computed"]) < 0.8, f"{router}: shares of heads {got['computed']}"
            for name, parameter in model.named_parameters():
                moved, error = (parameter - before[name]).abs().max().item(), (parameter - got["state"][name]).abs().max().item()
                assert moved > 1e-4 or ".wg" in name, f"{router}: {name} did not move"
                assert error < 0.01 * max(moved, 1e-3), f"{router}: {name} is off by {error:.3g}, it moved by {moved:.3g}"
            print(f"{router}: losses {[round(loss, 4) for loss in losses]}, two ranks as one")


if __name__ == "__main__":
    main()
