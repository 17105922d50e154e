"""Tables of runs/from_scratch.sh from the logs of its runs: mean and spread over seeds, load balance over time."""

import collections
import json
import pathlib
import statistics
import struct
import sys


def parameters(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entries = [entry for name, entry in json.loads(data[8 : 8 + length]).items() if name != "__metadata__"]
    return sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in entries) // 4


def cell(values, digits):
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def main():
    folder, runs = pathlib.Path(sys.argv[1]), collections.defaultdict(list)
    for log in sorted(folder.glob("*-seed*/log.jsonl")):
        runs[log.parent.name.split("-seed")[0]].append([json.loads(line) for line in log.read_text().splitlines()])
    order = sorted(runs, key=lambda share: -float(share))
    steps = [line["step"] for line in runs[order[0]][0] if "valid_perplexity" in line]
    tokens = runs[order[0]][0][-1]["tokens"]
    print(f"Validation perplexity, mean ± standard deviation over {len(runs[order[0]])} seeds, {tokens} tokens:\n")
    print("| heads active | parameters |", " | ".join(f"step {step}" for step in steps[1:]), "|")
    print("|---" * (len(steps) + 1) + "|")
    for share in order:
        at = [[line["valid_perplexity"] for log in runs[share] for line in log if line["step"] == step and "valid_perplexity" in line]
              for step in steps[1:]]
        count = parameters(next(folder.glob(f"{share}-seed*/model.safetensors")))
        print(f"| {100 * float(share):.0f} % | {count:,} |", " | ".join(cell(values, 3) for values in at), "|")
    print("\nLoad-balance loss (sum of P_i f_i over the routed heads; 1 / their number times K when balanced):\n")
    shown = steps[1:]
    print("| heads active | step 10 |", " | ".join(f"step {step}" for step in shown), "|")
    print("|---" * (len(shown) + 2) + "|")
    for share in order:
        if float(share) == 1:
            continue
        rows = [[line["load_balance_loss"] for log in runs[share] for line in log if line["step"] == step and "loss" in line]
                for step in [10, *shown]]
        print(f"| {100 * float(share):.0f} % |", " | ".join(cell(values, 4) for values in rows), "|")


if __name__ == "__main__":
    main()
