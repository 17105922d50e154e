#!/usr/bin/env python3
"""Documents a second of `moh eval --task` and of lm-evaluation-harness's `hf` backend, on one thread each, in turns.

    /tmp/lm_eval/bin/python scripts/eval_speed.py build/moh MODEL DATA --task piqa,hellaswag --limit 40

DATA has TASK/SPLIT.jsonl (tests/eval/lm_eval_oracle.py says how to install the harness). Of the harness only the time in the
model is counted (tokenizing and scoring requests), of moh all but loading; the scores must be equal.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "eval"))
import lm_eval_oracle  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("moh")
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--task", required=True)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--shots", type=int)
    parser.add_argument("--batches", default="1,8", help="the harness's batch sizes")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()

    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    torch.set_num_threads(1)
    spent = 0.0

    def timed(function):
        def call(*arguments, **more):
            nonlocal spent
            start = time.monotonic()
            result = function(*arguments, **more)
            spent += time.monotonic() - start
            return result
        return call

    batches = [int(batch) for batch in options.batches.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        lm_eval_oracle.local_task_files(pathlib.Path(options.data).resolve(), pathlib.Path(folder))
        manager = TaskManager(include_path=folder, include_defaults=False)
        harness = HFLM(pretrained=options.model, device="cpu", dtype="float32", batch_size=1)
        harness.loglikelihood, harness.generate_until = timed(harness.loglikelihood), timed(harness.generate_until)
        print("| task | documents | moh | " + " | ".join(f"hf, batch {batch}" for batch in batches) + " | ratio to the better |")
        for task in options.task.split(","):
            rates = {"moh": 0.0, **{batch: 0.0 for batch in batches}}
            for _ in range(options.rounds):
                shots = ["--shots", str(options.shots)] if options.shots is not None else []
                done = subprocess.run([options.moh, "eval", options.model, "--task", task, "--data", options.data, "--limit",
                                       str(options.limit), "--threads", "1", "--dtype", "fp32", "--json", *shots],
                                      capture_output=True, text=True, check=True)
                lines = [json.loads(line) for line in done.stdout.splitlines()]
                count = lines[0]["n"]
                rates["moh"] = max(rates["moh"], lines[0]["documents_per_second"])
                for batch in batches:
                    spent, harness.batch_size_per_gpu = 0.0, batch
                    said = lm_eval.simple_evaluate(model=harness, tasks=[task], num_fewshot=options.shots, limit=options.limit,
                                                   task_manager=manager, bootstrap_iters=0)["results"][task]
                    rates[batch] = max(rates[batch], count / spent)
                    for key, value in said.items():
                        if isinstance(value, float):
                            ours = lines[-1]["results"][task][key]
                            assert abs(ours - value) <= 1e-4 * max(1, abs(value)), (task, key, ours, value)
            print(f"| {task} | {count} | {rates['moh']:.2f} | " + " | ".join(f"{rates[batch]:.2f}" for batch in batches) +
                  f" | {rates['moh'] / max(rates[batch] for batch in batches):.2f} |", flush=True)


if __name__ == "__main__":
    main()
