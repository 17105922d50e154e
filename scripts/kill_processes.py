#!/usr/bin/env python3
"""kill -9 of a random process of a training under torchrun, again and again: at most one checkpoint interval is lost each time,
and the end is the undisturbed run's to the bit. `scripts/kill_processes.py build/moh [KILLS [PROCESSES [SEED]]]`; 20 kills of 2
processes take about five minutes on two cores."""

import json
import pathlib
import random
import signal
import os
import subprocess
import sys
import tempfile
import time

MOH = str(pathlib.Path(sys.argv[1]).resolve())
KILLS = int(sys.argv[2]) if len(sys.argv) > 2 else 20
PROCESSES = int(sys.argv[3]) if len(sys.argv) > 3 else 2
SEED = int(sys.argv[4]) if len(sys.argv) > 4 else int(time.time())
INTERVAL, STEPS = 10, 300
TORCHRUN = str(pathlib.Path(sys.executable).with_name("torchrun"))


def ranks_of(parent):
    found = []
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) == parent and \
                    b"\0RANK=" in b"\0" + (status.parent / "environ").read_bytes():
                found.append(int(status.parent.name))
        except (OSError, IndexError):
            pass
    return sorted(found)


def losses(out):
    found = {}
    lines = (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").exists() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the last line, torn by a kill
        if "loss" in entry:
            found[entry["step"]] = entry["loss"]
    return found


def newest(out):
    return max((int(p.name[5:]) for p in (out / "checkpoints").glob("step-*")), default=0)


def main():
    chance = random.Random(SEED)
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder)
        (base / "text.txt").write_text("\n".join("the quick brown fox jumps over the lazy dog"[i % 20 :] for i in range(300)))
        options = ["train", "--preset", "moh-llm-tiny", "--model.num_hidden_layers", "2", "--model.hidden_size", "64",
                   "--model.num_attention_heads", "4", "--model.intermediate_size", "96", "--sequence", "64", "--batch", "8",
                   "--data", str(base / "text.txt"), "--steps", str(STEPS), "--checkpoint-every", str(INTERVAL), "--log-every", "1",
                   "--validate-every", "0", "--threads", "1", "--out"]

        def start(out, restarts):
            return subprocess.Popen([TORCHRUN, "--no-python", "--nproc-per-node", str(PROCESSES), "--max-restarts", str(restarts),
                                     "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", MOH, *options, str(out)],
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        assert start(base / "whole", 0).wait() == 0
        expected, weights = losses(base / "whole"), (base / "whole" / "model.safetensors").read_bytes()
        kills, runs, worst, lost_in_all = 0, 0, 0, 0
        while kills < KILLS:
            out, runs = base / f"run{runs}", runs + 1
            process = start(out, KILLS + 1)
            while process.poll() is None:
                if kills >= KILLS:
                    assert process.wait() == 0
                    break
                # At a moment while the processes train, or start, or save.
                time.sleep(chance.uniform(0.5, 4))
                ranks = ranks_of(process.pid)
                if process.poll() is not None or not ranks:
                    continue
                try:
                    os.kill(chance.choice(ranks), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                kills += 1
                time.sleep(0.3)
                lost = max(losses(out), default=0) - newest(out)
                assert lost <= INTERVAL, f"{lost} steps lost (seed {SEED}, kill {kills})"
                worst, lost_in_all = max(worst, lost), lost_in_all + max(lost, 0)
            assert process.returncode == 0, f"torchrun gave up: {process.returncode} (seed {SEED}, kill {kills})"
            assert losses(out) == expected, f"other losses (seed {SEED})"
            assert (out / "model.safetensors").read_bytes() == weights, f"other weights (seed {SEED})"
        print(f"{kills} kills of one of {PROCESSES} processes in {runs} runs of {STEPS} steps, a checkpoint every {INTERVAL}: at most "
              f"{worst} steps lost, {lost_in_all / kills:.1f} on average; every run ended with the undisturbed run's weights (seed {SEED})")


if __name__ == "__main__":
    main()
