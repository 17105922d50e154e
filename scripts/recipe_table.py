#!/usr/bin/env python3
"""A dense language model beside what `moh convert --recipe best` makes of it: perplexity, benchmarks, speed.

    scripts/recipe_table.py MODEL OUT --data wiki.txt --data books.txt --text WikiText-2=held.txt --text books=other.txt \\
        [--tasks FOLDER] [--shares 0.89,0.78,0.67,0.5] [--groups 0.67] [--limit N] [--windows N] [--convert "OPTIONS of moh convert"]

Converts once for every share (what is in OUT already stays), measures all and prints Markdown. OUT/table.json holds every
figure; `moh report OUT/figure.json --out figure.html` draws quality against share. Perplexity: windows of 512 tokens from
the beginning of every text. Tasks are 0-shot. Speed: `moh generate` in turns with the dense model, medians.
"""

import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

MOH = pathlib.Path(__file__).resolve().parent.parent / "build" / "moh"
KEYS = {"lambada_openai": "acc", "boolq": "acc"}  # others: acc_norm, as they are usually told


def run(*arguments):
    done = subprocess.run([str(MOH), *map(str, arguments), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"moh {' '.join(str(word)[:80] for word in arguments)}\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


class Table:
    def __init__(self, options):
        self.options, self.out = options, pathlib.Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.file = self.out / "table.json"
        self.figures = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.common = ("--threads", options.threads, "--dtype", options.dtype)

    def remember(self, name, key, measure):
        """A figure that is there is not measured again."""
        row = self.figures.setdefault(name, {})
        if key not in row:
            start = time.time()
            row[key] = measure()
            self.file.write_text(json.dumps(self.figures, indent=1))
            print(f"{name}: {key} {json.dumps(row[key])[:200]} ({time.time() - start:.0f} s)", file=sys.stderr, flush=True)
        return row[key]

    def convert(self, name, share, more):
        folder = self.out / name
        if not (folder / "model.safetensors").exists():
            texts = [word for path in self.options.data for word in ("--data", path)]
            kept = self.out / ("statistics-groups" if more else "statistics")
            start = time.time()
            run("convert", self.options.model, folder, "--recipe", "best", "--activated", share, *texts, "--statistics", kept,
                "--threads", self.options.threads, *more, *shlex.split(self.options.convert))
            self.remember(name, "seconds", lambda: time.time() - start)
        return folder

    def measure(self, name, folder):
        for text in self.options.text:
            label, _, path = text.partition("=")
            self.remember(name, label, lambda: run("eval", folder, "--data", path, "--sequence", 512, "--max-windows",
                                                   self.options.windows, "--batch", 4, *self.common)[-1])
        if self.options.tasks:
            for task in self.options.task.split(","):
                limit = ("--limit", self.options.limit) if self.options.limit else ()
                self.remember(name, task, lambda: run("eval", folder, "--task", task, "--data", self.options.tasks, *limit,
                                                      *self.common)[0])

    def speed(self, name, folder):
        prompt = pathlib.Path(self.options.text[0].partition("=")[2]).read_text()[:self.options.prompt]

        def both():
            rates = {"dense": [], "moh": []}
            for _ in range(self.options.rounds):
                for who, model in (("dense", self.options.model), ("moh", folder)):
                    line = run("generate", model, "--prompt", prompt, "--max-tokens", 64, "--ignore-eos", *self.common)[-1]
                    rates[who].append((line["prompt_tokens_per_second"], line["tokens_per_second"]))
            median = {who: [statistics.median(rate) for rate in zip(*some)] for who, some in rates.items()}
            return [median["dense"][i] / median["moh"][i] for i in range(2)]  # of time
        return self.remember(name, "speed", both)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--text", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--tasks", metavar="FOLDER")
    parser.add_argument("--task", default="piqa,lambada_openai,openbookqa,arc_easy,boolq")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--shares", default="0.89,0.78,0.67,0.5")
    parser.add_argument("--groups", default="0.67")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--prompt", type=int, default=4000, help="characters of the first text that speed is measured with")
    parser.add_argument("--rounds", type=int, default=3, help="0: no speed")
    parser.add_argument("--convert", default="", metavar="OPTIONS", help="more options of moh convert, one word")
    options = parser.parse_args()

    table = Table(options)
    models = [("dense", options.model)]
    table.measure("dense", options.model)
    plan = [(f"heads-{share}", share, ()) for share in options.shares.split(",") if share]
    plan += [(f"groups-{share}", share, ("--select", "kv-group")) for share in options.groups.split(",") if share]
    for name, share, more in plan:
        models.append((name, table.convert(name, share, more)))
        table.measure(*models[-1])
        if options.rounds:
            table.speed(*models[-1])

    labels = [text.partition("=")[0] for text in options.text]
    tasks = options.task.split(",") if options.tasks else []
    columns = ["model", *(word for label in labels for word in (label, "heads used")), *tasks]
    columns += ["mean"] if tasks else []
    columns += ["prompt, time", "decode, time"] if options.rounds else []
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for name, _ in models:
        row, cells = table.figures[name], [name]
        for label in labels:
            against = row[label]["perplexity"] / table.figures["dense"][label]["perplexity"] - 1
            cells += [f"{row[label]['perplexity']:.2f}" + (f" ({100 * against:+.2f} %)" if name != "dense" else ""),
                      f"{100 * row[label]['active_heads']:.1f} %"]
        scores = []
        for task in tasks:
            key = KEYS.get(task, "acc_norm")
            scores.append((row[task][key], row[task][key + "_stderr"]))
            cells.append(f"{100 * scores[-1][0]:.1f} ± {100 * scores[-1][1]:.1f}")
        if scores:
            error = sum(error ** 2 for _, error in scores) ** 0.5 / len(scores)
            cells.append(f"{100 * statistics.mean(score for score, _ in scores):.2f} ± {100 * error:.2f}")
        if options.rounds:
            cells += [f"{ratio:.2f}" for ratio in row["speed"]] if "speed" in row else ["1", "1"]
        print("| " + " | ".join(cells) + " |")
    series = []
    for label in labels:
        points = [(100 * table.figures[name][label]["active_heads"],
                   100 * (table.figures[name][label]["perplexity"] / table.figures["dense"][label]["perplexity"] - 1))
                  for name, _ in models if not name.startswith("groups")]
        series.append({"name": label, "x": [x for x, _ in points], "y": [y for _, y in points]})
    plot = {"type": "lines", "title": "Perplexity against the share of heads, untuned", "x_label": "heads used, %",
            "y_label": "perplexity above dense, %", "series": series}
    report = {"title": "Conversion without training", "sections": [{"heading": "Quality and share", "items": [plot]}]}
    (table.out / "figure.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
