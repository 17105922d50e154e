"""moh convert --recipe best: what it keeps of a dense model, its steps one by one, Ctrl-C and resume, tuning from there."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from tool import MOH, json_lines, refused

os.environ["OMP_NUM_THREADS"] = "1"  # the models here are too small to share their work

WORDS = "the cat saw a red ball and ran to the big old tree where it hid all day".split()


class Recipe(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="moh_recipe_"))
        cls.text, cls.other, cls.valid = (cls.folder / f"{name}.txt" for name in ("text", "other", "valid"))
        lines = [" ".join(WORDS[i % 7 :] + WORDS[: i * i % 13]) for i in range(600)]
        cls.text.write_text("\n".join(lines[:300]))
        cls.other.write_text("\n".join(lines[300:500]))
        cls.valid.write_text("\n".join(lines[500:]))
        cls.dense = cls.folder / "dense"
        json_lines("train", "--preset", "llm-tiny", "--model.num_hidden_layers", 3, "--model.hidden_size", 32,
                   "--model.num_attention_heads", 4, "--model.num_key_value_heads", 2, "--model.intermediate_size", 64,
                   "--batch", 4, "--sequence", 64, "--data", cls.text, "--out", cls.dense, "--steps", 250, "--lr", "1e-2",
                   "--warmup", 10)
        cls.calibration = ("--data", cls.text, "--data", cls.other, "--calibration-sequence", 64)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def convert(self, name, *options):
        out = self.folder / name
        return out, json_lines("convert", self.dense, out, *options)[-1]

    def eval(self, model, *options):
        return json_lines("eval", model, "--data", self.valid, "--sequence", 64, *options)[-1]

    def test_best_is_nearer_to_the_dense_model_than_the_papers_form(self):
        dense = self.eval(self.dense)["nll"]
        paper = self.eval(self.convert("paper", "--activated", 0.5)[0])["nll"]
        best, summary = self.convert("best", "--recipe", "best", "--activated", 0.5, *self.calibration)
        self.assertEqual(summary["activated"], 0.5)
        self.assertEqual(len(summary["layers"]), 3)
        self.assertIn("threshold", summary["layers"][0])
        self.assertFalse((best / "conversion").exists())
        measured = self.eval(best)
        self.assertLess(measured["nll"] - dense, (paper - dense) / 3)
        self.assertAlmostEqual(measured["active_heads"], 0.5, delta=0.06)  # text like that of calibration

        more = self.eval(best, "--activated", 0.75)
        self.assertAlmostEqual(more["active_heads"], 0.75, delta=0.08)
        every = self.eval(best, "--activated", 1)
        self.assertEqual(every["active_heads"], 1)
        refused("eval", best, "--data", self.valid, "--top-k", 2, words="threshold")
        text = json_lines("generate", best, "--prompt", "the cat", "--max-tokens", 8)[-1]
        self.assertEqual(text["tokens"], 8)
        load = json_lines("inspect", best, "--data", self.valid)[-1]["head_load"]
        self.assertAlmostEqual(sum(map(sum, load)) / 12, measured["active_heads"], delta=0.05)

        groups, _ = self.convert("groups", "--recipe", "best", "--activated", 0.5, "--select", "kv-group", *self.calibration)
        self.assertAlmostEqual(self.eval(groups)["active_heads"], 0.5, delta=0.08)

    def test_every_step_singly(self):
        nll = {}
        steps = {"router": (), "means": ("--mean-heads",), "refit": ("--mean-heads", "--refit"), "counts": ("--budget", "global"),
                 "weighted": ("--weighted", "--mean-heads", "--refit"), "threshold": ("--choose", "threshold"),
                 "best-by-number": ("--recipe", "best", "--choose", "top-k", "--leading-tokens", 0), "no-means": ("--recipe", "best", "--no-mean-heads")}
        for name, options in steps.items():
            out, summary = self.convert(name, "--router", "linear", "--activated", 0.5, *options, *self.calibration)
            measured = self.eval(out)
            nll[name] = measured["nll"]
            moh = json.loads((out / "config.json").read_text())["moh"]
            self.assertEqual(moh["router"], "linear")
            self.assertEqual(moh["mean_heads"], "--mean-heads" in options or name == "best-by-number")
            by_threshold = name in ("threshold", "no-means")
            self.assertEqual(moh["choose"], "threshold" if by_threshold else "top-k")
            if not by_threshold:
                self.assertEqual(sum(layer["top_k"] for layer in summary["layers"]), 6)
                self.assertAlmostEqual(measured["active_heads"], 0.5)
            self.assertEqual(moh.get("leading_tokens", 0), 1 if name == "no-means" else 0)
            if name == "router":
                self.assertEqual([layer["top_k"] for layer in summary["layers"]], [2, 2, 2])
        self.assertLess(nll["means"], nll["router"])
        self.assertLess(nll["refit"], nll["means"])

    def test_scores_spend_the_budget_of_the_norm_router(self):
        out, summary = self.convert("norm-budget", "--budget", "global", "--activated", 0.5, *self.calibration)
        self.assertEqual(sum(layer["shared_heads"] + layer["top_k"] for layer in summary["layers"]), 6)
        self.assertAlmostEqual(self.eval(out)["active_heads"], 0.5)

    def test_interrupted_and_resumed(self):
        options = ("--recipe", "best", "--activated", 0.5, *self.calibration, "--calibration-windows", 300)
        whole, _ = self.convert("whole", *options)
        out = self.folder / "stopped"
        command = [MOH, "convert", self.dense, out, *map(str, options), "--json"]
        stops = 0
        for entry in ("statistics/metric", "statistics/router-1", "layer-1"):
            process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            while process.poll() is None and not (out / "conversion" / f"{entry}.safetensors").exists():
                time.sleep(0.005)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            errors = process.communicate(timeout=60)[1].decode()
            if process.returncode == 0:
                break
            self.assertEqual(process.returncode, 130, errors)
            self.assertLess(time.monotonic() - start, 1 + 4)  # a second, on a machine that others use too
            self.assertIn("goes on from there", errors)
            self.assertFalse((out / "model.safetensors").exists())
            stops += 1
        self.assertGreater(stops, 0)
        refused("convert", self.dense, out, *options, "--select", "kv-group", words="other options")
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        for name in ("model.safetensors", "config.json"):
            self.assertEqual((out / name).read_bytes(), (whole / name).read_bytes(), name)

    def test_statistics_serve_other_shares(self):
        kept = ("--recipe", "best", *self.calibration, "--statistics", self.folder / "kept")
        self.convert("kept-a", *kept, "--activated", 0.75)
        metric = self.folder / "kept" / "metric.safetensors"
        written = metric.stat().st_mtime_ns
        again, _ = self.convert("kept-b", *kept, "--activated", 0.5)
        self.assertEqual(metric.stat().st_mtime_ns, written)
        alone, _ = self.convert("kept-c", "--recipe", "best", *self.calibration, "--activated", 0.5)
        self.assertEqual((again / "model.safetensors").read_bytes(), (alone / "model.safetensors").read_bytes())
        refused("convert", self.dense, self.folder / "kept-d", *kept, "--no-mean-heads", words="other options")

    def test_tuning_goes_on_from_there(self):
        best, _ = self.convert("to-tune", "--recipe", "best", "--activated", 0.4, *self.calibration)
        tuned = self.folder / "tuned"
        json_lines("tune", best, "--distill", self.dense, "--data", self.text, "--out", tuned, "--steps", 40, "--batch", 4,
                   "--sequence", 64, "--lr", "3e-3", "--warmup", 3)
        before, after = self.eval(best), self.eval(tuned)
        self.assertLess(after["nll"], before["nll"])
        self.assertAlmostEqual(after["active_heads"], before["active_heads"], delta=0.12)  # the routers stay, their inputs move

    def test_what_does_not_go_together_is_refused(self):
        out = self.folder / "refused"
        refused("convert", self.dense, out, "--recipe", "best", words="--data")
        refused("convert", self.dense, out, "--refit", words="--router linear")
        refused("convert", self.dense, out, "--recipe", "best", "--top-k", 1, *self.calibration, words="--top-k")
        refused("convert", self.dense, out, "--recipe", "best", "--budget", "measured", *self.calibration, words="measured")
        best, _ = self.convert("bad", "--recipe", "best", *self.calibration)
        config = json.loads((best / "config.json").read_text())
        for key, value, words in (("thresholds", [[1, 2]] * 3, "fall"), ("activated", 0, "activated"), ("top_k", 2, "top_k"),
                                   ("choose", "most", "choose"), ("mean_heads", 1, "mean_heads"), ("thresholds", [], "thresholds")):
            bad = json.loads(json.dumps(config))
            bad["moh"][key] = value
            (best / "config.json").write_text(json.dumps(bad))
            refused("eval", best, "--data", self.valid, words=words)


if __name__ == "__main__":
    unittest.main(argv=["recipe_test"])
