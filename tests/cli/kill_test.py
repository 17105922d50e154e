"""kill -9 at random moments of training: at most one checkpoint interval is lost, never a checkpoint, and the end is the same
to the bit. `kill_test.py MOH [KILLS [SEED]]`; scripts/kill_training.sh runs it 200 times."""

import json
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time

MOH = sys.argv[1] if len(sys.argv) > 1 else str(pathlib.Path(__file__).parents[2] / "build" / "moh")
KILLS = int(sys.argv[2]) if len(sys.argv) > 2 else 8
SEED = int(sys.argv[3]) if len(sys.argv) > 3 else int(time.time())
STEPS, INTERVAL = 60, 3


def is_whole(path):
    """A safetensors file as long as its header says."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return len(data) == 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")


def checkpoints(out):
    """Steps of the checkpoints, each of which must be complete."""
    steps = []
    for folder in (out / "checkpoints").glob("step-*"):
        step = int(folder.name[5:])
        assert json.loads((folder / "trainer.json").read_text())["step"] == step, folder
        assert json.loads((folder / "config.json").read_text())["vocab_size"] == 256, folder
        assert is_whole(folder / "model.safetensors") and is_whole(folder / "optimizer.safetensors"), folder
        steps.append(step)
    return sorted(steps)


def losses(out):
    """step: loss of log.jsonl; a kill may tear its last line."""
    found, lines = {}, (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").exists() else []
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            assert number == len(lines) - 1, f"torn line {number} of {len(lines)}"
            continue
        if "loss" in entry:
            assert entry["step"] not in found, f"step {entry['step']} is logged twice"
            found[entry["step"]] = entry["loss"]
    return found


def main():
    chance = random.Random(SEED)
    base = pathlib.Path(tempfile.mkdtemp(prefix="moh_kill_"))
    text = base / "text.txt"
    text.write_text("\n".join("the quick brown fox jumps over the lazy dog"[i % 20 :] for i in range(300)))
    options = ["--preset", "moh-llm-tiny", "--model.num_hidden_layers", "1", "--model.hidden_size", "32",
               "--model.num_attention_heads", "4", "--model.intermediate_size", "32", "--data", str(text), "--steps", str(STEPS),
               "--batch", "2", "--sequence", "16", "--checkpoint-every", str(INTERVAL), "--log-every", "1", "--threads", "1"]

    def start(out):
        fresh = not (out / "run.json").exists()
        arguments = ["train", *(options if fresh else ["--resume", "--threads", "1"]), "--out", str(out)]
        return subprocess.Popen([MOH, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    try:
        whole = base / "whole"
        began = time.time()
        process = start(whole)
        assert process.wait() == 0, process.stderr.read()
        duration = time.time() - began
        expected, final = losses(whole), (whole / "model.safetensors").read_bytes()
        assert len(expected) == STEPS

        kills, runs, worst, saved = 0, 0, 0, 0
        while kills < KILLS:
            out, runs, newest = base / f"run{runs}", runs + 1, 0
            while True:
                process = start(out)
                if kills < KILLS:
                    time.sleep(chance.uniform(0, 0.8 * duration))
                    process.kill()
                status = process.wait()
                error = process.stderr.read().decode()
                process.stderr.close()
                assert status in (0, -9), f"status {status}: {error}"
                kills += status == -9
                steps, logged = checkpoints(out), losses(out)
                latest, last = max(steps, default=0), max(logged, default=0)
                assert latest >= newest, f"checkpoint {newest} is gone, the newest is {latest} (seed {SEED}, kill {kills})"
                assert last - latest <= INTERVAL, f"{last - latest} steps lost (seed {SEED}, kill {kills})"
                other = {step: (loss, expected[step]) for step, loss in logged.items() if expected[step] != loss}
                assert not other, f"other losses (seed {SEED}, kill {kills}), step: (got, expected): {other}, saved {steps}"
                worst, newest, saved = max(worst, last - latest), latest, saved + len(steps)
                if status == 0:
                    break
            assert losses(out) == expected and (out / "model.safetensors").read_bytes() == final, f"another end (seed {SEED})"
            assert not list((out / "checkpoints").glob(".*")), "leftovers of killed runs"
            shutil.rmtree(out)
        print(f"{kills} kills in {runs} runs of {STEPS} steps, a checkpoint every {INTERVAL}: at most {worst} steps lost, "
              f"{saved} checkpoints seen after kills, all complete; every run ended with the same weights (seed {SEED})")
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
