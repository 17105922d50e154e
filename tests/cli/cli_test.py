"""The tool as a user drives it: commands, JSON keys, exit status, one line for every error, Ctrl-C and resume."""

import json
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

from tool import MOH, SMALL, json_lines, refused, run, train_small


class Cli(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="moh_cli_"))
        cls.small = SMALL
        cls.text, cls.dense, cls.log = train_small(cls.folder, steps=200)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def test_train_logs_every_key_and_learns(self):
        keys = {"step", "tokens", "loss", "load_balance_loss", "lr", "grad_norm", "tokens_per_second", "active_heads"}
        self.assertLessEqual(keys, set(self.log[-1]))
        self.assertLess(self.log[-1]["valid_perplexity"], self.log[0]["valid_perplexity"] / 4)
        for name in ("config.json", "model.safetensors", "log.jsonl", "run.json", "checkpoints/step-200/optimizer.safetensors"):
            self.assertTrue((self.dense / name).exists(), name)
        self.assertTrue(list(self.dense.glob("events.out.tfevents.*")))

    def test_convert_tune_eval_generate_inspect(self):
        dense = json_lines("eval", self.dense, "--data", self.text, "--sequence", 32)[-1]
        self.assertEqual(dense["active_heads"], 1)
        for router in ("norm", "two-stage"):
            converted, tuned = self.folder / f"c_{router}", self.folder / f"t_{router}"
            summary = json_lines("convert", self.dense, converted, "--activated", 0.5, "--router", router)[-1]
            self.assertEqual(summary["activated"], 0.5)
            self.assertEqual(summary["layers"], [{"heads": 4, "shared_heads": 1, "top_k": 1}] * 2)
            before = json_lines("eval", converted, "--data", self.text, "--sequence", 32)[-1]
            json_lines("tune", converted, "--distill", self.dense, "--data", self.text, "--out", tuned, "--steps", 30, "--batch", 4,
                       "--sequence", 32, "--lr", "3e-3", "--warmup", 3)
            after = json_lines("eval", tuned, "--data", self.text, "--sequence", 32)[-1]
            self.assertAlmostEqual(after["active_heads"], 0.5)
            self.assertLess(after["perplexity"], before["perplexity"])
            self.assertAlmostEqual(after["nll"], __import__("math").log(after["perplexity"]), places=6)
            out = json_lines("generate", tuned, "--prompt", "the cat", "--max-tokens", 12, "--stop", "zzz")[-1]
            self.assertEqual(out["tokens"], 12)
            self.assertEqual(len(out["text"]), 12)  # bytes
            report = self.folder / "report.html"
            seen = json_lines("inspect", tuned, "--data", self.text, "--html", report)[-1]
            self.assertLessEqual({"parameters", "flops_per_token", "kv_bytes_per_token", "head_load"}, set(seen))
            for layer in seen["head_load"]:
                self.assertAlmostEqual(sum(layer), 2)  # 1 shared + 1 routed head for every token
                self.assertEqual(layer[0], 1)
            self.assertIn("<svg", report.read_text())

    def test_conversion_measures_heads_and_shares_change_at_run_time(self):
        def evaluated(folder, *options):
            return json_lines("eval", folder, "--data", self.text, "--sequence", 32, "--max-windows", 20, *options)[-1]
        dense = evaluated(self.dense)
        text = ("--data", self.text, "--calibration-windows", 4, "--calibration-sequence", 32)
        converted = self.folder / "c_measured"
        summary = json_lines("convert", self.dense, converted, "--activated", 0.5, "--top-k", 1, "--shared-by", "importance",
                        "--budget", "global", "--fit-router", *text)[-1]
        self.assertEqual(summary["activated"], 0.5)
        for layer in summary["layers"]:
            self.assertEqual(sorted(layer["head_order"]), [0, 1, 2, 3])
        self.assertAlmostEqual(evaluated(converted)["active_heads"], 0.5)
        # Scaling queries against keys leaves the model with all its heads what it was.
        self.assertAlmostEqual(evaluated(converted, "--activated", 1)["nll"], dense["nll"], places=4)
        self.assertEqual(evaluated(converted, "--top-k", 4)["active_heads"], 1)
        self.assertAlmostEqual(json_lines("inspect", converted, "--activated", 0.75)[-1]["activated"], 0.75)
        self.assertEqual(json_lines("generate", converted, "--prompt", "a", "--max-tokens", 5, "--moh-top-k", 4)[-1]["active_heads"], 1)
        served = self.folder / "t_shares"
        log = json_lines("tune", converted, "--data", self.text, "--out", served, "--steps", 12, "--batch", 2, "--sequence", 32,
                         "--log-every", 1, "--random-share-min", 0.5)
        self.assertGreater(len({round(line["active_heads"], 3) for line in log if "loss" in line}), 1)

        grouped = self.folder / "c_grouped"
        wide = self.folder / "wide"
        json_lines("train", *self.small, "--preset", "llm-tiny", "--model.num_key_value_heads", 2, "--data", self.text, "--out", wide,
                   "--steps", 2)
        json_lines("convert", wide, grouped, "--activated", 0.5, "--select", "kv-group", "--shared", 0)
        self.assertEqual(json.loads((grouped / "config.json").read_text())["moh"]["select"], "kv-group")
        self.assertEqual(evaluated(grouped)["active_heads"], 0.5)
        fitted = self.folder / "c_fitted"
        json_lines("convert", wide, fitted, "--activated", 0.5, "--router", "two-stage", "--fit-router", *text)
        self.assertEqual(evaluated(fitted)["active_heads"], 0.5)
        refused("convert", self.dense, self.folder / "no", "--shared-by", "importance", words="--data")
        refused("convert", self.dense, self.folder / "no", "--budget", "global", "--router", "two-stage", *text,
                words="two-stage")
        refused("eval", self.dense, "--data", self.text, "--top-k", 2, words="dense")
        refused("eval", converted, "--data", self.text, "--top-k", 2, "--activated", 0.5, words="--activated", status=2)

    def test_sampling_is_repeatable(self):
        options = ("--prompt", "the", "--max-tokens", 20, "--temperature", 0.9, "--top-p", 0.9)
        first, again, other = (json_lines("generate", self.dense, *options, "--seed", seed)[-1]["text"] for seed in (1, 1, 2))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)
        stopped = json_lines("generate", self.dense, *options, "--seed", 1, "--stop", first[5:7])[-1]["text"]
        self.assertEqual(stopped, first[: first.index(first[5:7])])

    def test_ids_beyond_the_tokenizer_are_nothing(self):
        """Models pad their vocabulary; a text goes on where one of those rows is sampled."""
        padded = self.folder / "padded"
        shutil.copytree(self.dense, padded)
        vocab = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
        (padded / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": []},
                                                           "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}))
        (padded / "added_tokens.json").write_text(json.dumps({"[tool]": 40, "<|end|>": 41}))
        (padded / "tokenizer_config.json").write_text(json.dumps({
            "eos_token": "<|end|>", "added_tokens_decoder": {"42": {"content": "[other]", "special": False}}}))
        out = json_lines("generate", padded, "--prompt", "abc", "--max-tokens", 60, "--temperature", 9, "--ignore-eos")[-1]
        self.assertEqual(len(out["ids"]), 60)
        names = {**{i: letter for letter, i in vocab.items()}, 40: "[tool]", 42: "[other]"}
        self.assertGreater(sum(id not in names for id in out["ids"]), 20)
        self.assertEqual(out["text"], "".join(names.get(id, "") for id in out["ids"]))
        (self.folder / "words.txt").write_text("ab[tool]c<|end|>[other]")
        for flags, ids in ((), [0, 1, 40, 2, 4, 13, 3, 42]), (("--parse-special",), [0, 1, 40, 2, 41, 42]):
            run("tokenizer", "encode", padded, "--file", self.folder / "words.txt", "--out", self.folder / "words.npy", *flags)
            self.assertEqual(list((self.folder / "words.npy").read_bytes()[-2 * len(ids) :: 2]), ids)
        for flags, text in ((), "ab[tool]cend[other]"), (("--parse-special",), "ab[tool]c[other]"):
            run("tokenizer", "encode", padded, "--file", self.folder / "words.txt", "--out", self.folder / "words.npy", *flags)
            self.assertEqual(json_lines("tokenizer", "decode", padded, "--file", self.folder / "words.npy")[-1]["text"], text)

    def test_chat(self):
        refused("generate", self.dense, "--chat", "hi", words="has no chat template")
        chat = self.folder / "chat"
        shutil.copytree(self.dense, chat)
        template = "{% for m in messages %}[{{ m.role }}]\n{{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
        (chat / "chat_template.jinja").write_text(template)
        talk = [{"role": "user", "content": " the cat "}, {"role": "assistant", "content": "saw"}, {"role": "user", "content": "a"}]
        (self.folder / "talk.json").write_text(json.dumps(talk))
        for given, text in (("the cat", "[user]\nthe cat\n[assistant]\n"),
                            (self.folder / "talk.json", "[user]\nthe cat\n[assistant]\nsaw\n[user]\na\n[assistant]\n")):
            out = json_lines("generate", chat, "--chat", given, "--max-tokens", 8)[-1]
            prompt = bytes(id for id in out["prompt_ids"] if id < 256).decode()
            self.assertEqual(prompt, text)
            self.assertEqual(out["text"], json_lines("generate", chat, "--prompt", text, "--max-tokens", 8)[-1]["text"])
        # In tokenizer_config.json, as a text or as one of several.
        (chat / "chat_template.jinja").unlink()
        for value in (template, [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]):
            (chat / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
            self.assertEqual(json_lines("generate", chat, "--chat", self.folder / "talk.json", "--max-tokens", 8)[-1]["text"], out["text"])
        (chat / "chat_template.jinja").write_text("a\n{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}")
        refused("generate", chat, "--chat", self.folder / "talk.json", words=["chat_template.jinja: line 2", "one at a time"])
        (chat / "chat_template.jinja").write_text("{% include 'x' %}")
        refused("generate", chat, "--chat", "hi", words="tag `include` is not supported")
        (chat / "chat_template.jinja").write_text(template)
        refused("generate", chat, "--chat", "-", words="a terminal", stdin=subprocess.DEVNULL)
        (self.folder / "talk.json").write_text('[{"content": "x"}]')
        refused("generate", chat, "--chat", self.folder / "talk.json", words="message 0")

    def test_interrupt_saves_and_resume_goes_on_to_the_same_end(self):
        options = (*self.small, "--data", self.text, "--lr", "3e-3", "--steps", 60, "--checkpoint-every", 7, "--log-every", 1)
        whole, parts = self.folder / "whole", self.folder / "parts"
        json_lines("train", *options, "--out", whole)
        process = subprocess.Popen([MOH, "train", *map(str, options), "--out", str(parts), "--json"], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        for _ in range(10):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        self.assertIn(process.wait(), (130,))
        process.stdout.close()
        process.stderr.close()
        self.assertFalse((parts / "model.safetensors").exists())
        json_lines("train", "--resume", "--out", parts)
        self.assertEqual((whole / "model.safetensors").read_bytes(), (parts / "model.safetensors").read_bytes())

        def losses(folder):
            return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
        self.assertEqual(losses(whole), losses(parts))

    def test_config_file_and_flags(self):
        config = self.folder / "run.toml"
        config.write_text('[train]\nsteps = 2\nbatch = 2\nsequence = 16\n[model]\nnum_hidden_layers = 1\n[moh]\nbeta = 0.5\n')
        out = self.folder / "from_config"
        log = json_lines("train", "--preset", "moh-llm-tiny", "--config", config, "--data", self.text, "--out", out, "--steps", 3)
        self.assertEqual(log[-1]["step"], 3)  # the flag wins
        written = json.loads((out / "config.json").read_text())
        self.assertEqual((written["num_hidden_layers"], written["moh"]["beta"]), (1, 0.5))
        config.write_text("[train]\nstep = 2\n")
        refused("train", "--preset", "llm-tiny", "--config", config, "--data", self.text, "--out", self.folder / "none",
                words="did you mean `steps`")

    def test_info_help_and_completion(self):
        info = json_lines("info")[-1]
        names = [backend["name"] for backend in info["backends"]]
        self.assertEqual(names[-2:], ["reference", "composite"])
        self.assertTrue(all(backend["available"] or backend["reason"] for backend in info["backends"]))
        self.assertIn("moh-llm-s", info["presets"])
        self.assertTrue(any(schema.startswith("moh::head_attention(") for schema in info["operators"]))
        self.assertEqual(run("--version").stdout.split()[0], "moh")
        for command in ("train", "tune", "convert", "eval", "generate", "bench", "inspect", "info", "tokenizer", "data"):
            run(command, "--help")

    def test_tokenizer_round_trip(self):
        folder, ids, back = self.folder / "tok", self.folder / "ids.npy", self.folder / "back.txt"
        json_lines("tokenizer", "train", folder, "--file", self.text, "--vocab-size", 300)
        count = json_lines("tokenizer", "encode", folder, "--file", self.text, "--out", ids)[-1]["tokens"]
        self.assertLess(count, self.text.stat().st_size)
        json_lines("tokenizer", "decode", folder, "--file", ids, "--out", back)
        self.assertEqual(back.read_text(), self.text.read_text())

    def test_wrong_usage_is_status_2(self):
        refused("eval", words="missing", status=2)
        refused("info", "--no-such-flag", words="--no-such-flag", status=2)
        refused("convert", self.dense, self.folder / "no", "--router", "random", words="--router", status=2)

    def test_errors_are_one_line(self):
        refused("eval", self.folder, "--data", self.text, words="config.json")
        refused("eval", self.dense, "--data", self.folder / "nothing.txt", words="does not exist")
        refused("inspect", "moh-llm-x", words="moh-llm-tiny")
        refused("info", "--backend", "sse9", words="unknown backend")
        refused("eval", self.dense, "--data", self.text, "--device", "cuda", words="cuda")
        refused("eval", self.dense, "--data", self.text, "--sequence", 100000, words="context")
        refused("train", "--preset", "llm-tiny", "--data", self.text, "--out", self.folder / "no", "--model.num_hidden_layer",
                2, words="did you mean `num_hidden_layers`")
        refused("train", *self.small, "--data", self.text, "--out", self.dense, words="--resume")
        ids = self.folder / "big.npy"
        header = b"{'descr': '<u2', 'fortran_order': False, 'shape': (3,), }".ljust(117) + b"\n"
        ids.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + struct.pack("<3H", 1, 2, 9999))
        refused("eval", self.dense, "--data", ids, words="9999")
        empty = self.folder / "empty.txt"
        empty.write_text("")
        refused("eval", self.dense, "--data", empty, words="empty")

    def test_damaged_models_are_one_line(self):
        broken = self.folder / "broken"
        shutil.copytree(self.dense, broken)
        weights = broken / "model.safetensors"
        whole = weights.read_bytes()
        for damage in (whole[:-5], whole[:6], b"\xff" * 8 + whole[8:], whole[:8] + b"[" + whole[9:], b""):
            weights.write_bytes(damage)
            refused("generate", broken, words="model.safetensors")
        weights.write_bytes(whole)
        config = json.loads((broken / "config.json").read_text())
        for key, value in (("num_attention_heads", 0), ("hidden_size", 1 << 40), ("vocab_size", "many"), ("moh", {"top": 1})):
            (broken / "config.json").write_text(json.dumps({**config, key: value}))
            refused("generate", broken, words=key)
        (broken / "config.json").write_text("[" * 5000)
        refused("generate", broken, words="config.json")


if __name__ == "__main__":
    start = time.time()
    unittest.main(argv=sys.argv[:1], verbosity=1)
