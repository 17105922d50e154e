"""What a newcomer types: help, typos, settings that nothing reads, what is assumed and said, prompts, reports of runs."""

import json
import pathlib
import shutil
import tempfile
import unittest

from tool import SMALL, json_lines, refused, run, train_small


class Usage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="moh_usage_"))
        cls.text, cls.dense, cls.log = train_small(cls.folder, steps=20)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def test_train_help_of_a_preset_shows_its_kind(self):
        def default(text, option):
            line = next(line for line in text.splitlines() if line.split() and option in line.split()[0].split(","))
            return line
        plain, vit = run("train", "--help").stdout, run("train", "--preset", "moh-vit-s-75", "--help").stdout
        dit = run("help", "train", "--preset=moh-dit-s-2-75").stdout
        self.assertIn("0.0003", default(plain, "--lr"))
        self.assertIn("0.001", default(vit, "--lr"))
        self.assertIn("0.0001", default(dit, "--lr"))
        self.assertIn("--sequence", plain)
        self.assertNotIn("--sequence", vit)
        self.assertNotIn("--sheet-count", vit)
        self.assertIn("--sheet-count", dit)

    def test_sections_that_a_command_does_not_read_are_errors(self):
        config = self.folder / "sections.toml"
        config.write_text("[model]\nnum_hidden_layers = 1\n")
        tune = ("tune", self.dense, "--data", self.text, "--out", self.folder / "no")
        refused(*tune, "--moh.beta", 0, words=("`moh tune`", "--moh.beta", "`moh train`"))
        refused(*tune, "--config", config, words="--model.num_hidden_layers")
        refused("eval", self.dense, "--data", self.text, "--model.hidden_size", 3, words="--model.hidden_size")
        refused("eval", self.dense, "--data", self.text, "--config", config, words=("`moh eval`", "--model.num_hidden_layers"))
        refused("info", "--moh.top_k=3", words="--moh.top_k")
        config.write_text("[train]\nsequence = 8\nsteps = 1\nvalid_window = 2\n")
        refused(*tune, "--config", config, words="did you mean `valid_windows`")
        refused("train", "--resume", "--out", self.dense, "--model.hidden_size", 8, words="--model.KEY")

    def test_runs_of_older_versions_keep_their_sequence(self):
        out = self.folder / "older"
        json_lines("train", *SMALL, "--data", self.text, "--out", out, "--steps", 2, "--log-every", 1)
        record = json.loads((out / "run.json").read_text())
        self.assertEqual(record["run"].pop("sequence"), 32)
        record["train"].update(sequence=32, illustrate_every=0)  # where they kept it
        (out / "run.json").write_text(json.dumps(record))
        (out / "model.safetensors").unlink()
        log = json_lines("train", "--resume", "--out", out, "--steps", 3)
        self.assertEqual(log[-1]["tokens"], 3 * 4 * 32)

    def test_typos_get_a_suggestion(self):
        refused("evl", self.dense, words=("unknown command `evl`", "did you mean `eval`"), status=2)
        refused("tokenizer", "encod", words=("`tokenizer encod`", "did you mean `encode`"), status=2)
        refused("convert", self.dense, "x", "--activted", 0.5, words=("unknown option `--activted`", "`--activated`"), status=2)
        refused("train", "--modle.hidden_size", 3, words="unknown option `--modle.hidden_size`", status=2)
        refused("eval", self.dense, "--data", self.text, "more", words="`more`", status=2)
        refused("convert", self.dense, "x", "--router", "two-stag", words=("did you mean `two-stage`", "norm"), status=2)
        refused("bench", "atention", words="did you mean `attention`", status=2)
        refused("train", "--preset", "llm-tini", "--data", self.text, "--out", "x", words="llm-tiny")
        refused(words="a command is missing", status=2)
        self.assertEqual(run("help").stdout, run("--help").stdout)
        self.assertEqual(run("help", "eval").stdout, run("eval", "--help").stdout)
        self.assertEqual(run("help", "tokenizer", "encode").stdout, run("tokenizer", "encode", "--help").stdout)

    def test_what_is_assumed_is_said(self):
        odd = self.folder / "odd"
        note = run("convert", self.dense, odd, "--activated", 0.6).stdout
        self.assertIn("60.0 % of 4 heads", note)
        self.assertIn("--recipe best", note)
        short = run("train", *SMALL, "--data", self.text, "--out", self.folder / "short", "--steps", 2, "--warmup", 50)
        self.assertIn("warm-up takes 50 of 2 steps: the learning rate ends at 2 %", short.stdout)
        binary = self.folder / "binary.txt"
        binary.write_bytes(b"words\0words")
        refused("eval", self.dense, "--data", binary, words=("binary.txt is not a text but binary",))
        dense = run("inspect", self.dense, "--data", self.text)
        self.assertIn("is dense: every token uses every head", dense.stdout)
        self.assertIn("4 query heads x 8, 4 KV heads", dense.stdout)
        refused("eval", self.dense, "--data", self.text, "--image-size", 32, words="--image-size does not apply")
        refused("inspect", "moh-dit-s-2-75", "--max-windows", 3, words="--max-windows does not apply")
        refused("generate", "moh-vit-s-75", words="`moh classify`")

    def test_heads_of_every_kind_are_drawn(self):
        page = self.folder / "heads.html"
        for preset, word in (("moh-llm-s", "layers"), ("moh-vit-s-75", "stages"), ("moh-dit-s-2-75", "layers")):
            told = run("inspect", preset, "--html", page).stdout
            self.assertRegex(told, rf"\n{word} +shared +selected +of routed\n")
            self.assertIn(f"wrote {page}", told)
            self.assertIn(": routed</title>", page.read_text())
        converted = self.folder / "linear"
        json_lines("convert", self.dense, converted, "--recipe", "best", "--data", self.text, "--calibration-windows", 4,
                   "--calibration-sequence", 32)
        self.assertRegex(run("inspect", converted).stdout, r"0-1 +0 +some +4\n")  # by threshold: the number varies
        dense = run("inspect", self.dense, "--html", page).stdout
        self.assertNotIn("selected", dense)
        self.assertNotIn(": routed</title>", page.read_text())

    def test_prompt_as_argument_and_from_standard_input(self):
        wanted = json_lines("generate", self.dense, "--prompt", "the cat", "--max-tokens", 5)[-1]["ids"]
        self.assertEqual(json_lines("generate", self.dense, "the cat", "--max-tokens", 5)[-1]["ids"], wanted)
        piped = run("generate", self.dense, "--prompt", "-", "--max-tokens", 5, "--json", input="the cat")
        self.assertEqual(json.loads(piped.stdout)["ids"], wanted)
        refused("generate", self.dense, "a", "--prompt", "b", words="--prompt", status=2)

    def test_report_draws_training_folders(self):
        page = self.folder / "runs.html"
        other = self.folder / "other_run"
        json_lines("train", *SMALL, "--preset", "llm-tiny", "--data", self.text, "--out", other, "--steps", 3, "--log-every", 1)
        run("report", self.dense, other, "--out", page)
        text = page.read_text()
        for words in ("2 trainings", "dense, validation", "other_run", "Learning rate", "Perplexity on the validation data"):
            self.assertIn(words, text)
        self.assertIn(f"{self.log[-1]['loss']:.6g}", text)
        refused("report", self.folder, words="log.jsonl")

    def test_a_finished_run_is_not_run_again(self):
        before = (self.dense / "log.jsonl").read_bytes()
        told = run("train", "--resume", "--out", self.dense).stdout
        self.assertIn("is finished: 20 of 20 steps", told)
        self.assertEqual((self.dense / "log.jsonl").read_bytes(), before)


if __name__ == "__main__":
    unittest.main(argv=["usage"])
