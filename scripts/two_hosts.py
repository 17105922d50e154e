#!/usr/bin/env python3
"""Two hosts on one machine: two network namespaces joined by a link of 1 Gbit/s (and 20 ms, where the kernel has netem). Trains
with one process in each, counts the bytes on the wire a step against the formula, then cuts the link. As root:
`scripts/two_hosts.py build/moh [PRESET [STEPS]]`."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

MOH = str(pathlib.Path(sys.argv[1]).resolve())
PRESET = sys.argv[2] if len(sys.argv) > 2 else "moh-llm-mini"
STEPS = int(sys.argv[3]) if len(sys.argv) > 3 else 12
NAMES = ("moh-host-0", "moh-host-1")


def sh(*command, check=True):
    return subprocess.run(command, check=check, capture_output=True, text=True)


def make_hosts():
    for name in NAMES:
        sh("ip", "netns", "add", name)
    sh("ip", "link", "add", "mohlink0", "netns", NAMES[0], "type", "veth", "peer", "name", "mohlink1", "netns", NAMES[1])
    delayed = True
    for i, name in enumerate(NAMES):
        inside = ("ip", "netns", "exec", name)
        sh(*inside, "ip", "addr", "add", f"10.77.0.{i + 1}/24", "dev", f"mohlink{i}")
        sh(*inside, "ip", "link", "set", f"mohlink{i}", "up")
        sh(*inside, "ip", "link", "set", "lo", "up")
        netem = sh(*inside, "tc", "qdisc", "add", "dev", f"mohlink{i}", "root", "netem", "delay", "10ms", "rate", "1gbit", check=False)
        if netem.returncode != 0:
            delayed = False
            sh(*inside, "tc", "qdisc", "add", "dev", f"mohlink{i}", "root", "tbf", "rate", "1gbit", "burst", "256kb", "latency", "50ms")
    return delayed


def start(rank, folder, ids, out, steps, extra=()):
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29555",
                   "GLOO_SOCKET_IFNAME": f"mohlink{rank}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(["ip", "netns", "exec", NAMES[rank], MOH, "train", "--preset", PRESET, "--data", str(ids), "--out", str(out),
                             "--batch", "4", "--sequence", "128", "--steps", str(steps), "--log-every", "1", "--validate-every", "0",
                             "--checkpoint-every", "0", "--threads", "1", *extra], env=environment, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


def sent(rank):
    lines = sh("ip", "netns", "exec", NAMES[rank], "cat", "/proc/net/dev").stdout.splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith(f"mohlink{rank}:"))


def main():
    import numpy
    try:
        delayed = make_hosts()
        with tempfile.TemporaryDirectory() as folder:
            ids = pathlib.Path(folder, "ids.npy")
            numpy.save(ids, numpy.random.default_rng(0).integers(0, 4096, 1 << 17).astype(numpy.uint16))
            parameters = json.loads(sh(MOH, "inspect", PRESET, "--json").stdout)["parameters"]
            for kind in ("fp32", "bf16"):
                before = [sent(rank) for rank in (0, 1)]
                out = pathlib.Path(folder, kind)
                extra = ["--reduce-dtype", kind, "--profile", str(out) + ".trace"]
                processes = [start(rank, folder, ids, out, STEPS, extra) for rank in (0, 1)]
                for process in processes:
                    assert process.wait() == 0, process.stderr.read()
                rates = [json.loads(line)["tokens_per_second"] for line in (out / "log.jsonl").read_text().splitlines()]
                formula = parameters / 2 * ((4 if kind == "fp32" else 2) + 4)
                for rank in (0, 1):
                    measured = (sent(rank) - before[rank]) / STEPS
                    print(f"{kind} gradients, process {rank}: {measured / 1e6:.2f} MB a step on the wire, formula {formula / 1e6:.2f} MB "
                          f"(ratio {measured / formula:.3f})")
                events = [e for e in json.load(open(str(out) + ".trace.0"))["traceEvents"] if e["ph"] == "X"]
                backward = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "backward"]
                messages = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "gradients"]
                inside = sum(max(0, min(b, d) - max(a, c)) for a, b in messages for c, d in backward)
                print(f"  {sorted(rates)[len(rates) // 2]:.0f} tokens/s; {100 * inside / sum(b - a for a, b in messages):.0f} % of the time "
                      "of gradients on their way lies inside the backward pass")
            out = pathlib.Path(folder, "cut")
            processes = [start(rank, folder, ids, out, 100000, ["--collective-timeout", "5"]) for rank in (0, 1)]
            while not (out / "log.jsonl").exists() or (out / "log.jsonl").read_text().count("\n") < 3:
                time.sleep(0.2)
            began = time.time()
            sh("ip", "netns", "exec", NAMES[0], "ip", "link", "set", "mohlink0", "down")
            for rank, process in enumerate(processes):
                status = process.wait(timeout=120)
                print(f"link cut: process {rank} ended with status {status} after {time.time() - began:.1f} s: "
                      f"{process.stderr.read().strip().splitlines()[-1:]}")
            print("1 Gbit/s" + (", 20 ms there and back" if delayed else "; without delay: this kernel has no netem"))
    finally:
        for name in NAMES:
            sh("ip", "netns", "del", name, check=False)


if __name__ == "__main__":
    main()
