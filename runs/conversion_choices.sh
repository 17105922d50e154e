#!/usr/bin/env bash
# All choices of `moh convert` side by side, before any tuning: perplexity against the share of active heads.
#
#   runs/conversion_choices.sh MODEL CALIBRATION VALID OUT
#
# Token files (.npy) or text; 16 windows of CALIBRATION are read. Prints a table and writes OUT/choices.json, which
# `moh report OUT/choices.json --out OUT/choices.html` draws. A minute or two for a model of 260,032 parameters;
# expected there: docs/results.md.
set -euo pipefail
model=$1 calibration=$2 valid=$3 out=$4
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$root/.venv/bin/python" - "$root/build/moh" "$model" "$calibration" "$valid" "$out" <<'PY'
import json, pathlib, shutil, subprocess, sys

moh, model, calibration, valid, out = sys.argv[1:]
out = pathlib.Path(out)
SHARES = (0.5, 0.625, 0.75, 0.875)
TEXT = ("--data", calibration)
CHOICES = {  # name: options; routed heads only, unless the choice is about shared ones
    "paper: half of the active heads shared, first ones": (),
    "first head shared": ("--shared", 0.125),
    "no shared head": ("--shared", 0),
    "half shared, by importance": ("--shared-by", "importance", *TEXT),
    "no shared head, fitted norms": ("--shared", 0, "--fit-router", *TEXT),
    "1 shared by importance, fitted norms": ("--shared", 0.125, "--shared-by", "importance", "--fit-router", *TEXT),
    "1 shared by importance, fitted norms, budget": ("--shared", 0.125, "--shared-by", "importance", "--fit-router", "--budget",
                                                     "global", *TEXT),
    "1 shared by importance, fitted two-stage": ("--shared", 0.125, "--shared-by", "importance", "--router", "two-stage",
                                                 "--fit-router", *TEXT),
    "KV groups, none shared": ("--shared", 0, "--select", "kv-group"),
    "KV groups, none shared, fitted norms": ("--shared", 0, "--select", "kv-group", "--fit-router", *TEXT),
}


def run(*arguments):
    result = subprocess.run([moh, *map(str, arguments), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def perplexity(folder):
    return run("eval", folder, "--data", valid, "--sequence", 512)


dense = perplexity(model)["perplexity"]
print(f"dense {dense:.4f}; perplexity above it, %")
print(f"{'active heads, %':<52}", *(f"{100 * share:>8.1f}" for share in SHARES))
series = []
for name, options in CHOICES.items():
    gaps = []
    for share in SHARES:
        shutil.rmtree(out / "model", ignore_errors=True)
        run("convert", model, out / "model", "--activated", share, *options)
        result = perplexity(out / "model")
        # KV groups are coarse: some shares do not exist.
        gaps.append(100 * (result["perplexity"] / dense - 1) if abs(result["active_heads"] - share) < 1e-6 else None)
    print(f"{name:<52}", *("       -" if gap is None else f"{gap:8.2f}" for gap in gaps), flush=True)
    kept = [(100 * share, gap) for share, gap in zip(SHARES, gaps) if gap is not None]
    series.append({"name": name, "x": [x for x, _ in kept] + [100], "y": [y for _, y in kept] + [0]})
shutil.rmtree(out / "model", ignore_errors=True)
(out / "choices.json").write_text(json.dumps({
    "title": "Converted, not tuned: perplexity against active heads",
    "sections": [{"heading": "All choices", "items": [{
        "type": "lines", "title": "Perplexity above the dense model's, %", "x_label": "active heads, %", "y_label": "%",
        "series": series}]}]}))
PY
