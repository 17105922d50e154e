"""moh bench at tiny sizes: every subject's keys, what they must add up to, summaries, files, wrong usage."""

import pathlib
import sys
import tempfile
import unittest

from tool import json_lines, refused, run

KEYS = {"subject", "direction", "dtype", "batch", "heads", "kv_heads", "head_dim", "tokens", "causal", "activated", "threads",
        "backend", "moh_ms", "rival", "rival_ms", "ratio", "efficiency", "max_abs_error", "ideal_ratio", "gemm_share",
        "bandwidth_share", "gemm_peak_gflops", "read_gbs"}


class Bench(unittest.TestCase):
    def bench(self, subject, *arguments, expected, threads=1):
        rows = json_lines("bench", subject, *arguments, "--threads", threads, "--seconds", 0.01, "--pairs", 1)
        self.assertEqual(len(rows), expected)
        for row in rows:
            self.assertLessEqual(KEYS, set(row))
            self.assertEqual(row["subject"], subject)
            for key in ("moh_ms", "rival_ms", "ratio", "gemm_share", "ideal_ratio"):
                self.assertGreater(row[key], 0, key)
            self.assertAlmostEqual(row["efficiency"], 1 / (row["ratio"] * row["activated"]))
            self.assertLess(row["max_abs_error"], 1)
        return rows

    def test_bench_attention(self):
        rows = self.bench("attention", "--tokens", 64, "--heads", 4, "--kv-heads", 2, "--head-dim", 16, "--activated", "1,0.5",
                          "--causal", "yes,no", "--dtype", "fp32,bf16", "--direction", "forward,backward,both", expected=24)
        self.assertEqual({row["activated"] for row in rows}, {1, 0.5})
        rows = self.bench("attention", "--tokens", "16,80", "--heads", 4, "--head-dim", 16, "--activated", 0.5, "--rival",
                          "torch_sdpa,authors_form", "--select", "kv-group", threads="1,2", expected=8)
        self.assertEqual([row["threads"] for row in rows], [1] * 4 + [2] * 4)
        self.assertTrue(all(0.4 < row["ideal_ratio"] < 1 for row in rows))  # keys and values are read all the same

    def test_bench_decode(self):
        rows = self.bench("decode", "--cache", "33,90", "--heads", 4, "--kv-heads", "4,2", "--head-dim", 16, "--batch", "1,3",
                          "--activated", "1,0.5", "--queries", "1,3", "--layout", "token,head", expected=2 ** 7)
        self.assertEqual({row["rival"] for row in rows}, {"torch_sdpa", "torch_matmul"})
        self.bench("decode", "--tokens", 40, "--heads", 4, "--head-dim", 16, "--dtype", "bf16,fp16", "--activated", 0.5,
                   expected=4)

    def test_bench_layer(self):
        rows = self.bench("layer", "--tokens", 50, "--hidden", 64, "--heads", 8, "--kv-heads", "8,2", "--head-dim", 16, "--router",
                          "two-stage,norm", "--direction", "forward,both", "--activated", "1,0.5", "--dtype", "fp32,bf16",
                          "--rival", "dense_twin,authors_form", expected=2 ** 6)
        for row in rows:
            self.assertGreater(row["router_share"], 0)
            self.assertEqual(row["shared_heads"] + row["top_k"], 8 * row["activated"])

    def test_bench_models(self):
        for subject in ("prefill", "train"):
            rows = self.bench(subject, "--preset", "moh-llm-tiny", "--tokens", "24,520", "--router",
                              "two-stage,norm", "--activated", "1,0.5", expected=8)
            for row in rows:
                self.assertTrue(0 < row["attention_flops_share"] < 1)
                self.assertGreater(row["attention_time_share"], 0)
            self.bench(subject, "--preset", "llm-tiny", "--tokens", 32, "--dtype", "bf16", "--activated", 0.75, "--rival",
                       "dense_twin,authors_form", expected=2)

    def test_bench_dit(self):
        rows = self.bench("dit", "--preset", "moh-dit-pixel-tiny", "--tokens", "16,81", "--batch", 2, "--dtype", "fp32,bf16",
                          "--rival", "dense_twin,authors_form,torch_dense", expected=12)
        for row in rows:
            self.assertEqual(row["activated"], 0.75)
            self.assertTrue(0.75 < row["ideal_ratio"] < 1 and 0 < row["attention_flops_share"] < row["head_flops_share"] < 1)
        run("bench", "dit", "--preset", "moh-dit-pixel-tiny", "--tokens", 15, "--batch", 1, status=1)
        run("bench", "dit", "--preset", "dit-pixel-tiny", "--tokens", 16, "--batch", 1, status=1)

    def test_bench_vit(self):
        rows = self.bench("vit", "--preset", "moh-vit-cifar", "--batch", 2, "--direction", "forward,both", "--dtype", "fp32,bf16",
                          "--rival", "dense_twin,authors_form", expected=8)
        for row in rows:
            self.assertTrue(0 < row["ideal_ratio"] < 1 and 0 < row["attention_flops_share"] < 1)
            self.assertAlmostEqual(row["images_per_second"], 2000 / row["moh_ms"])
            self.assertEqual("attention_time_share" in row, row["direction"] == "forward")
            self.assertEqual((row["tokens"], row["head_dim"], row["causal"]), (256, 16, False))
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "vit.md"
            for arguments in (("--direction", "forward"), ("--direction", "both", "--append")):
                json_lines("bench", "vit", "--preset", "moh-vit-cifar", "--batch", 1, "--rival", "dense_twin", "--threads", 1,
                           "--seconds", 0.01, "--pairs", 1, "--summary", "--markdown", file, *arguments)
            text = file.read_text()
            self.assertEqual(text.count("Geometric means:"), 2)
            for words in ("# moh bench vit", "images/s", "attn time", "| both |", "| forward |", "moh-vit-cifar"):
                self.assertIn(words, text)

    def test_bench_summary_and_file(self):
        folder = tempfile.TemporaryDirectory(prefix="moh_bench_")
        self.addCleanup(folder.cleanup)
        out = pathlib.Path(folder.name) / "result.md"
        command = ("bench", "attention", "--tokens", "16,32", "--heads", 2, "--head-dim", 8, "--activated", "1,0.5", "--seconds",
                   0.01, "--threads", 1, "--markdown", out)
        rows = json_lines(*command, "--summary")
        self.assertEqual([row["subject"] for row in rows], ["attention"] * 4 + ["summary of attention"] * 2)
        for summary, share in zip(rows[4:], (1, 0.5)):
            ratios = [row["ratio"] for row in rows[:4] if row["activated"] == share]
            self.assertAlmostEqual(summary["mean_ratio"], (ratios[0] * ratios[1]) ** 0.5)
            self.assertEqual(summary["worst_ratio"], max(ratios))
        text = out.read_text()
        self.assertIn("moh " + " ".join(map(str, command)), text)
        self.assertTrue(text.startswith("# moh bench attention, "))
        self.assertEqual(text.count("\n| forward | fp32 |"), 4 + 2)
        run(*command, "--append")
        self.assertEqual(out.read_text()[: len(text)], text)
        self.assertEqual(out.read_text().count("# moh bench"), 1)

    def test_bench_generate(self):
        rows = json_lines("bench", "generate", "moh-llm-tiny", "--prompt-tokens", "16,40", "--max-tokens", 5, "--depth", "0,70",
                          "--repetitions", 2, "--activated", 0.5, "--threads", 1, "--dtype", "bf16")
        self.assertEqual([(row["test"], row["depth"]) for row in rows],
                         [(test, depth) for depth in (0, 70) for test in ("pp16", "pp40", "tg5")])
        for row in rows:
            self.assertEqual((row["activated"], row["repetitions"], row["threads"], row["model"], row["dtype"]),
                             (0.5, 2, 1, "moh-llm-tiny", "BFloat16"))
            self.assertTrue(row["tokens_per_second"] > 0 and row["deviation"] >= 0)

    def test_bench_serve(self):
        row, = json_lines("bench", "serve", "moh-llm-tiny", "--requests", 12, "--concurrency", 5, "--prompt-tokens", "3,90",
                          "--max-tokens", "2,9", "--hang-up", 0.3, "--verify", "--threads", 1)
        self.assertEqual((row["errors"], row["different"], row["pages_used_at_end"]), (0, 0, 0), row)
        self.assertEqual(row["completed"] + row["hung_up"], 12)
        self.assertEqual(row["verified"], row["completed"])
        self.assertTrue(0 < row["completed"] < 12 and 12 * 2 <= row["generated_tokens"] + row["hung_up"] <= 12 * 9)
        for name in ("ttft_ms", "time_per_token_ms", "request_ms"):
            times = row[name]
            self.assertTrue(0 < times["p50"] <= times["p90"] <= times["p99"], row)
        self.assertGreater(row["request_ms"]["mean"], row["ttft_ms"]["p50"] / 100)

    def test_wrong_usage_is_one_line(self):
        for status, words, arguments in ((1, "attention has no --queries", ("attention", "--queries", 2)),
                                         (1, "torch_sdpa, authors_form", ("attention", "--rival", "nobody")),
                                         (1, "--activated", ("decode", "--activated", 0)), (2, "subject", ("nothing",))):
            refused("bench", *arguments, words=words, status=status)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
