#!/usr/bin/env python3
"""Tokens a second of training by two processes: `moh train --processes 2` beside PyTorch's DistributedDataParallel and
fully_shard (FSDP2) on a transformers LLaMA of the same size, same batch, fp32, AdamW fused, clipping; alternated.

    scripts/rival_training.py build/moh [--preset llm-mini] [--batch 8] [--sequence 256] [--steps 12] [--rounds 3]
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time


def rival(kind, config, batch, sequence, steps):
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**config, use_cache=False, attn_implementation="sdpa"))
    if kind == "fsdp2":
        mesh = dist.init_device_mesh("cpu", (size,)) if hasattr(dist, "init_device_mesh") else \
            __import__("torch.distributed.device_mesh", fromlist=["x"]).init_device_mesh("cpu", (size,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    torch.manual_seed(rank)
    times = []
    for step in range(steps + 2):
        ids = torch.randint(config["vocab_size"], (batch // size, sequence + 1))
        dist.barrier()
        start = time.perf_counter()
        logits = model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        if step >= 2:
            times.append(time.perf_counter() - start)
    if rank == 0:
        print(json.dumps({"tokens_per_second": batch * sequence / statistics.median(times)}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("moh")
    parser.add_argument("--preset", default="llm-mini")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        rival(arguments.kind, json.loads(arguments.model), arguments.batch, arguments.sequence, arguments.steps)
        return

    line = subprocess.run([arguments.moh, "inspect", arguments.preset, "--json"], check=True, capture_output=True, text=True)
    config = json.loads(line.stdout)["config"]
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "head_dim")
    model = json.dumps({key: config[key] for key in keys if key in config})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        ids = pathlib.Path(folder, "ids.npy")
        import numpy
        numpy.save(ids, numpy.random.default_rng(0).integers(0, config["vocab_size"], 1 << 18).astype(numpy.uint16))

        def ours(number):
            out = pathlib.Path(folder, f"run{number}")
            subprocess.run([arguments.moh, "train", "--preset", arguments.preset, "--data", str(ids), "--out", str(out),
                            "--batch", str(arguments.batch), "--sequence", str(arguments.sequence), "--steps",
                            str(arguments.steps + 2), "--log-every", "1", "--validate-every", "0", "--checkpoint-every", "0",
                            "--threads", "1", "--processes", "2"], check=True, capture_output=True, env=environment)
            rates = [json.loads(x)["tokens_per_second"] for x in (out / "log.jsonl").read_text().splitlines()]
            return statistics.median(rates[2:])

        def theirs(kind):
            command = [str(pathlib.Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2",
                       __file__, arguments.moh, "--kind", kind, "--model", model, "--batch", str(arguments.batch), "--sequence",
                       str(arguments.sequence), "--steps", str(arguments.steps)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            return json.loads(done.stdout.strip().splitlines()[-1])["tokens_per_second"]

        rates = {"moh": [], "ddp": [], "fsdp2": []}
        for number in range(arguments.rounds):
            rates["moh"].append(ours(number))
            rates["ddp"].append(theirs("ddp"))
            rates["fsdp2"].append(theirs("fsdp2"))
        for name, values in rates.items():
            print(f"{name:6} {statistics.median(values):9.0f} tokens/s  ({min(values):.0f} to {max(values):.0f})")
        print(f"moh / the better rival: {statistics.median(rates['moh']) / max(statistics.median(rates[k]) for k in ('ddp', 'fsdp2')):.2f}")


if __name__ == "__main__":
    main()
