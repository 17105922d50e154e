"""Perplexity against the share of active heads for every choice of `moh convert`; see runs/conversion_choices.sh."""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys

MOH = pathlib.Path(__file__).resolve().parent.parent / "build" / "moh"
SHARES = (0.5, 0.625, 0.75, 0.875)


def choices(calibration):
    """Name: options. Routed heads only, unless the choice is about shared ones."""
    text = ("--data", calibration)
    one_shared = ("--shared", 0.125, "--shared-by", "importance", "--fit-router", *text)
    return {
        "paper: half of the active heads shared, first ones": (),
        "first head shared": ("--shared", 0.125),
        "no shared head": ("--shared", 0),
        "half shared, by importance": ("--shared-by", "importance", *text),
        "no shared head, fitted norms": ("--shared", 0, "--fit-router", *text),
        "1 shared by importance, fitted norms": one_shared,
        "1 shared by importance, fitted norms, budget": (*one_shared, "--budget", "measured"),
        "1 shared by importance, fitted two-stage": (*one_shared, "--router", "two-stage"),
        "KV groups, none shared": ("--shared", 0, "--select", "kv-group"),
        "KV groups, none shared, fitted norms": ("--shared", 0, "--select", "kv-group", "--fit-router", *text),
    }


def run(*arguments):
    result = subprocess.run([MOH, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return result.stdout


class Experiment:
    def __init__(self, options):
        self.options = options
        self.out = pathlib.Path(options.out)

    def evaluate(self, folder, *more):
        return json.loads(run("eval", folder, "--data", self.options.valid, "--sequence", self.options.sequence,
                              "--max-windows", self.options.windows, "--json", *more).splitlines()[-1])

    def converted(self, model, dense, conversion):
        """Perplexity above the dense model's in %, for each share; None where the choice has no such share."""
        folder, gaps = self.out / "model", []
        for share in SHARES:
            shutil.rmtree(folder, ignore_errors=True)
            run("convert", model, folder, "--activated", share, *conversion)
            result = self.evaluate(folder)
            exact = abs(result["active_heads"] - share) < 1e-6  # KV groups are coarse
            gaps.append(100 * (result["perplexity"] / dense - 1) if exact else None)
        shutil.rmtree(folder, ignore_errors=True)
        return gaps

    def tuned(self, model, dense, seed):
        """The same for one checkpoint, tuned with a share drawn for every batch; the last number is with all heads."""
        start, folder = self.out / "start", self.out / f"tuned-{pathlib.Path(model).name}-{seed}"
        if not (folder / "model.safetensors").exists():
            shutil.rmtree(start, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            run("convert", model, start, "--activated", 0.75,
                *choices(self.options.calibration)["1 shared by importance, fitted two-stage"])
            run("tune", start, "--distill", model, "--data", self.options.calibration, "--out", folder, "--steps", self.options.tune,
                "--batch", 16, "--sequence", self.options.sequence, "--lr", 1e-3, "--final-lr", 0.02, "--weight-decay", 0,
                "--random-share-min", 0.5, "--random-share-max", 1, "--seed", seed, "--validate-every", 0)
            shutil.rmtree(start)
        return [100 * (self.evaluate(folder, "--activated", share)["perplexity"] / dense - 1) for share in (*SHARES, 1)]


def cell(values):
    if None in values:
        return "-"
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("calibration")
    parser.add_argument("valid")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--windows", type=int, default=0)
    parser.add_argument("--tune", type=int, default=0)
    options = parser.parse_args()
    experiment = Experiment(options)
    experiment.out.mkdir(parents=True, exist_ok=True)

    dense = [experiment.evaluate(model)["perplexity"] for model in options.models]
    print("dense", cell(dense), flush=True)
    print("\nPerplexity above the dense model's, %:\n")
    print("| active heads |", " | ".join(f"{100 * share:g} %" for share in (*SHARES, 1)), "|")
    print("|---" * (len(SHARES) + 2) + "|")
    series = []

    def show(name, rows):
        """rows: one list of gaps a model or seed, in the order of SHARES, then all heads."""
        columns = list(zip(*rows))
        print(f"| {name} |", " | ".join(cell(column) for column in columns), "|", flush=True)
        points = [(100 * share, statistics.mean(column)) for share, column in zip((*SHARES, 1), columns) if None not in column]
        series.append({"name": name, "x": [x for x, _ in points], "y": [y for _, y in points]})

    for name, conversion in choices(options.calibration).items():
        show(name, [[*experiment.converted(model, base, conversion), 0.0] for model, base in zip(options.models, dense)])
    if options.tune:
        # One model is tuned three times; models that differ by their seed once each.
        pairs = list(zip(options.models, dense)) if len(options.models) > 1 else list(zip(options.models * 3, dense * 3))
        show(f"1 shared by importance, fitted two-stage, tuned {options.tune} steps: one checkpoint for all shares",
             [experiment.tuned(model, base, seed) for seed, (model, base) in enumerate(pairs)])
    (experiment.out / "choices.json").write_text(json.dumps({
        "title": "Perplexity against active heads",
        "sections": [{"heading": "All choices", "items": [{
            "type": "lines", "title": "Perplexity above the dense model's, %", "x_label": "active heads, %", "y_label": "%",
            "series": series}]}]}))


main()
