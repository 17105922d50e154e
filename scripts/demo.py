#!/usr/bin/env python3
"""The main job of moh, end to end, with the commands that a user would type.

Trains a small dense LLaMA, turns it into Mixture-of-Head models at 75 % and 50 % of the heads, continue-tunes both with
the dense model as teacher, compares perplexity, measures speed beside torch's fused attention, generates text and writes
report.html. Without --data the text comes from the project's own grammar, whose entropy is known exactly.
"""

import argparse
import json
import math
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
MOH = ROOT / "build" / "moh"
SHARES = (0.75, 0.5)


def moh(*arguments, quiet=False):
    """Runs `moh ... --json`; progress goes to the terminal, the JSON lines come back."""
    words = [str(argument) for argument in arguments]
    if not quiet:
        print("\n$ moh " + shlex.join(words).replace("\n", "\\n"), flush=True)
    result = subprocess.run([MOH, *words, "--json"], stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(result.returncode)
    return [json.loads(line) for line in result.stdout.splitlines()]


def prepare_text(arguments, out):
    """train.txt and valid.txt, and for the grammar's text -ln p of the validation part."""
    train, valid = out / "train.txt", out / "valid.txt"
    if arguments.data:
        lines = pathlib.Path(arguments.data).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        cut = max(1, len(lines) * 19 // 20)
        train.write_text("".join(lines[:cut]), encoding="utf-8")
        valid.write_text("".join(lines[cut:]), encoding="utf-8")
        return train, valid, None
    moh("stories", "--out", train, "--count", arguments.stories, "--seed", 1)
    nats = moh("stories", "--out", valid, "--count", 400, "--seed", 2)[-1]["nats"]
    return train, valid, nats


def train_dense(arguments, out, train, valid):
    tokenizer = out / "tokenizer"
    moh("tokenizer", "train", tokenizer, "--file", train, "--vocab-size", 2048 if arguments.data else 512)
    dense = out / "dense"
    log = moh("train", "--preset", "llm-tiny", "--tokenizer", tokenizer, "--data", train, "--valid", valid, "--out", dense,
              "--steps", arguments.steps, "--batch", 16, "--sequence", 256, "--lr", "3e-3", "--warmup", 50,
              "--weight-decay", 0.1, "--validate-every", max(1, arguments.steps // 6), "--valid-windows", 48,
              "--checkpoint-every", 0)
    return dense, log


def curve(log, x_key, y_key):
    points = [line for line in log if y_key in line]
    return {"x": [line[x_key] for line in points], "y": [line[y_key] for line in points]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a text file of yours")
    parser.add_argument("--model", help="a dense Hugging Face LLaMA folder")
    parser.add_argument("--out", default=str(ROOT / "demo"))
    parser.add_argument("--steps", type=int, default=500, help="training steps of the dense model")
    parser.add_argument("--tune-steps", type=int, default=150, help="tuning steps of each MoH model")
    parser.add_argument("--stories", type=int, default=12000, help="stories of training text")
    arguments = parser.parse_args()
    out = pathlib.Path(arguments.out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    start = time.time()

    train, valid, nats = prepare_text(arguments, out)
    if arguments.model:
        dense, dense_log = pathlib.Path(arguments.model), []
    else:
        dense, dense_log = train_dense(arguments, out, train, valid)

    evaluation = ("--data", valid, "--sequence", 256)
    dense_eval = moh("eval", dense, *evaluation)[-1]
    floor = math.exp(nats / dense_eval["tokens"]) if nats else None

    rows = [["dense", 100.0, dense_eval["perplexity"], 0.0, None]]
    curves, loads = [], []
    for share in SHARES:
        percent = f"{share:.0%}"
        converted, tuned = out / f"moh-{share:.2f}-converted", out / f"moh-{share:.2f}"
        moh("convert", dense, converted, "--activated", share)
        before = moh("eval", converted, *evaluation)[-1]
        log = moh("tune", converted, "--distill", dense, "--data", train, "--valid", valid, "--out", tuned,
                  "--steps", arguments.tune_steps, "--batch", 16, "--sequence", 256, "--lr", "1e-3", "--warmup", 20,
                  "--weight-decay", 0, "--validate-every", max(1, arguments.tune_steps // 5), "--valid-windows", 48,
                  "--checkpoint-every", 0)
        after = moh("eval", tuned, *evaluation)[-1]
        gap = lambda result: 100 * (result["perplexity"] / dense_eval["perplexity"] - 1)
        rows.append([f"MoH {percent}, converted", 100 * before["active_heads"], before["perplexity"], gap(before), None])
        rows.append([f"MoH {percent}, tuned", 100 * after["active_heads"], after["perplexity"], gap(after),
                     log[-1]["tokens"]])
        curves.append({"name": f"MoH {percent}", **curve(log, "tokens", "valid_perplexity")})
        inspected = moh("inspect", tuned, "--data", valid, "--sequence", 256, quiet=True)[-1]
        loads.append((percent, inspected))

    speed = moh("bench", "attention", "--tokens", "512,1024,2048", "--seconds", 0.4)
    cost = moh("inspect", "moh-llm-s", quiet=True)[-1]

    prompt = "" if not arguments.data and not arguments.model else pathlib.Path(valid).read_text(encoding="utf-8")[:40]
    texts = []
    for name, folder in (("dense", dense), ("MoH 75%", out / "moh-0.75"), ("MoH 50%", out / "moh-0.50")):
        result = moh("generate", folder, "--prompt", prompt, "--max-tokens", 140, "--temperature", 0.8, "--seed", 3,
                     "--stop", "\n")[-1]
        texts.append((name, prompt + result["text"], result["tokens_per_second"]))
        print(f"{name}: {prompt + result['text']}")

    seconds = time.time() - start
    write_report(arguments, out, dense_log, dense_eval, floor, rows, curves, loads, speed, cost, texts, seconds)
    print(f"\n{'model':<22} {'heads on':>9} {'perplexity':>11} {'against dense':>14}")
    for name, active, perplexity, gap, _ in rows:
        print(f"{name:<22} {active:>8.1f}% {perplexity:>11.4f} {gap:>+13.2f}%")
    if floor:
        print(f"{'optimum (entropy)':<22} {'':>9} {floor:>11.4f} {100 * (floor / dense_eval['perplexity'] - 1):>+13.2f}%")
    print(f"\n{seconds:.0f} seconds; the report is {out / 'report.html'}")


def write_report(arguments, out, dense_log, dense_eval, floor, rows, curves, loads, speed, cost, texts, seconds):
    tuned = {row[0]: row for row in rows}
    dense_line = [{"name": "dense", "y": dense_eval["perplexity"]}]
    optimum = [{"name": "optimum", "y": floor}] if floor else []
    quality = [{"type": "table", "columns": ["model", "heads on, %", "perplexity", "against dense, %", "tuning tokens"],
                "rows": [[name, round(active, 1), round(ppl, 4), round(gap, 2), tokens if tokens else "-"]
                         for name, active, ppl, gap, tokens in rows]},
               {"type": "lines", "title": "Perplexity while tuning", "x_label": "tuning tokens", "y_label": "perplexity",
                "series": curves, "reference_lines": dense_line + optimum}]
    sections = []
    if dense_log:
        sections.append({"heading": "Training the dense model", "items": [
            {"type": "lines", "title": "Loss", "x_label": "tokens", "y_label": "nats a token",
             "series": [{"name": "training", **curve(dense_log, "tokens", "loss")},
                        {"name": "validation", **curve(dense_log, "tokens", "valid_loss"), "dashed": True}],
             "reference_lines": [{"name": "entropy of the text", "y": math.log(floor)}] if floor else []}]})
    sections.append({"heading": "Quality: fewer heads, the same perplexity", "items": quality})
    sections.append({
        "heading": "Speed of the operator",
        "text": "moh::head_attention against torch's fused scaled_dot_product_attention with all heads, in the same process, "
                "alternated, results checked first. The ratio is time of moh over time of torch: below 1 is faster. "
                f"In moh-llm-s, attention is {100 * cost['attention_share']:.0f} % of a dense forward pass at "
                f"{cost['context']} tokens; the whole model gains accordingly less.",
        "items": [{"type": "table", "columns": ["tokens", "heads on, %", "moh ms", "torch ms", "ratio"],
                   "rows": [[f"{row['tokens']:,}{' *' if row['disturbed'] else ''}", round(100 * row["activated"]), round(row["moh_ms"], 2),
                             round(row["rival_ms"], 2), round(row["ratio"], 2)] for row in speed],
                   "note": f"32 heads of 64, causal, fp32, {speed[0]['threads']} threads, backend {speed[0]['backend']}"}]})
    disturbed = [row for row in speed if row["disturbed"]]
    if disturbed:
        sections[-1]["items"][0]["note"] += (f"; *: other programs used up to {max(r['other_cpus'] for r in disturbed):.1f} CPUs "
                                             "meanwhile, these are not the machine's own figures")
    heat = []
    for percent, inspected in loads:
        shared = inspected["config"]["moh"]["shared_heads"]
        load = inspected["head_load"]
        per_layer = shared if isinstance(shared, list) else [shared] * len(load)
        heat.append({"type": "heatmap", "title": f"MoH {percent}: share of tokens that use each head", "x_label": "head",
                     "y_label": "layer", "x": [str(i) for i in range(len(load[0]))],
                     "y": [str(i) for i in range(len(load))],
                     "values": [[None if h < per_layer[i] else v for h, v in enumerate(row)]
                                for i, row in enumerate(load)]})
    sections.append({"heading": "Head load by layer", "items": heat})
    sections.append({"heading": "Text", "items": [item for name, text, rate in texts for item in
                     ({"type": "text", "text": f"{name}, {rate:.0f} tokens/s"}, {"type": "code", "text": text})]})
    summary = []
    for percent in ("75%", "50%"):
        row = tuned[f"MoH {percent}, tuned"]
        summary.append(f"With {row[1]:.0f} % of the heads, perplexity is {row[2]:.3f}: {row[3]:+.1f} % against the dense "
                       f"model's {dense_eval['perplexity']:.3f}.")
    if floor:
        summary.append(f"The text's exact entropy allows no perplexity below {floor:.3f}.")
    half = [row for row in speed if abs(row["activated"] - 0.5) < 0.01]
    if disturbed:
        summary.append("The speed of attention below was measured beside other programs, so it says little: repeat "
                       "`moh bench attention` when the machine is quiet.")
    else:
        summary.append(f"With half of the heads, attention takes {min(r['ratio'] for r in half):.2f} to "
                       f"{max(r['ratio'] for r in half):.2f} of the time of torch's fused attention with all of them.")
    report = {"title": "moh: a dense model becomes a Mixture-of-Head model",
              "subtitle": f"make demo, {seconds:.0f} seconds, {arguments.data or arguments.model or 'stories of its own grammar'}",
              "summary": summary, "sections": sections}
    (out / "report.json").write_text(json.dumps(report, indent=1))
    moh("report", out / "report.json", "--out", out / "report.html", quiet=True)


if __name__ == "__main__":
    main()
