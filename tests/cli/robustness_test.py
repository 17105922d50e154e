"""What breaks from outside: NaN weights, a full disk, folders that cannot be written, prompts that are too long. One clear
line each, and what was there before stays. And memory: a model is not loaded twice."""

import functools
import json
import os
import pathlib
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import unittest

import tool
from tool import MOH, json_lines, run

refused = functools.partial(tool.refused, alone=False)  # what a training told before stands
BASE = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}


def peak_bytes(*arguments):
    """Largest resident memory of one run, mapped files included."""
    process = subprocess.Popen([MOH, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0, arguments
    return usage.ru_maxrss * 1024


def write_model(folder, vocabulary, hidden, intermediate, layers, heads=8):
    """Constant bf16 weights, written without torch. Returns the size of the weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(
        {**BASE, "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": intermediate,
         "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 512}))
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden], "lm_head.weight": [vocabulary, hidden]}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": [hidden, hidden] for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": [intermediate, hidden] for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = [hidden, intermediate]
        shapes |= {f"{prefix}{name}_layernorm.weight": [hidden] for name in ("input", "post_attention")}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            for _ in range(shape[0]):
                file.write((b"\x00\x3c" if len(shape) == 2 else b"\x80\x3f") * (shape[1] if len(shape) == 2 else 1))
    return offset


class Robustness(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="moh_robust_"))
        cls.text = cls.folder / "text.txt"
        cls.text.write_text("\n".join("a small red ball rolled to the old tree"[i % 9:] for i in range(400)))
        cls.small = ["--preset", "moh-llm-tiny", "--model.num_hidden_layers", 1, "--model.hidden_size", 32,
                     "--model.num_attention_heads", 4, "--model.intermediate_size", 32, "--batch", 2, "--sequence", 16]
        cls.model = cls.folder / "model"
        run("train", *cls.small, "--data", cls.text, "--out", cls.model, "--steps", 4)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def dense(self):
        """The model without routers."""
        place = self.folder / "dense"
        if not place.exists():
            shutil.copytree(self.model, place)
            config = json.loads((place / "config.json").read_text())
            del config["moh"]
            (place / "config.json").write_text(json.dumps(config))
            data = (place / "model.safetensors").read_bytes()
            (length,) = struct.unpack("<Q", data[:8])
            kept, body = {}, b""
            for name, entry in json.loads(data[8 : 8 + length]).items():
                if name != "__metadata__" and ".wg" not in name:
                    begin, end = entry["data_offsets"]
                    kept[name] = {**entry, "data_offsets": [len(body), len(body) + end - begin]}
                    body += data[8 + length + begin : 8 + length + end]
            header = json.dumps(kept).encode()
            (place / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + body)
        return place

    def test_nan_weights_are_named(self):
        broken = self.folder / "nan"
        shutil.copytree(self.model, broken)
        data = bytearray((broken / "model.safetensors").read_bytes())
        (length,) = struct.unpack("<Q", data[:8])
        name = "model.layers.0.mlp.up_proj.weight"
        place = 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0] + 40
        data[place : place + 4] = struct.pack("<f", float("nan"))
        (broken / "model.safetensors").write_bytes(data)
        words = [name, "NaN"]
        refused("eval", broken, "--data", self.text, "--sequence", 16, words=words)
        refused("generate", broken, "--prompt", "a", "--max-tokens", 3, words=words)
        refused("inspect", broken, "--data", self.text, words=words)
        refused("convert", broken, self.folder / "none", words=words)
        refused("convert", broken, self.folder / "none", "--export", "hf", words=words)
        self.assertFalse((self.folder / "none").exists())
        refused("tune", broken, "--data", self.text, "--out", self.folder / "none2", "--sequence", 16, words=words)
        refused("tune", self.model, "--distill", broken, "--data", self.text, "--out", self.folder / "none3", "--sequence", 16,
                words=words)

    def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(self):
        out = self.folder / "diverges"
        options = [*self.small, "--data", self.text, "--out", out, "--steps", 40, "--checkpoint-every", 2, "--warmup", 20,
                   "--clip", 0, "--lr", "1e30"]
        refused("train", *options, words=["not finite", "checkpoints/step-", "--lr"])
        newest = max((out / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
        self.assertTrue((newest / "optimizer.safetensors").exists())
        self.assertTrue((newest / "model.safetensors").exists())

    def test_a_run_stopped_before_its_first_checkpoint_begins_anew_with_its_own_model(self):
        out, options = self.folder / "early", [*self.small, "--data", self.text, "--steps", 4, "--threads", 1]
        run("train", *options, "--out", out)
        expected = (out / "model.safetensors").read_bytes()
        shutil.rmtree(out / "checkpoints")
        (out / "model.safetensors").unlink()
        run("train", "--resume", "--out", out, "--threads", 1)
        self.assertEqual((out / "model.safetensors").read_bytes(), expected)

    def test_prompts_and_data_out_of_bounds(self):
        refused("generate", self.model, "--prompt", "a" * 600, words="context")
        short = run("generate", self.model, "--prompt", "a" * 500, "--max-tokens", 50, "--json")
        self.assertEqual(json.loads(short.stdout)["tokens"], 12)
        self.assertIn("room for 12 tokens", short.stderr)
        empty = self.folder / "empty.txt"
        empty.write_text("")
        nothing = self.folder / "nothing"
        nothing.mkdir()
        for command in (["eval", self.model], ["inspect", self.model], ["train", *self.small, "--out", self.folder / "none4"],
                        ["tune", self.model, "--out", self.folder / "none5"]):
            refused(*command, "--data", empty, words="is empty")
            refused(*command, "--data", nothing, words="no .txt")
        self.assertFalse((self.folder / "none4" / "checkpoints").exists())
        fresh = ["train", *self.small, "--out", self.folder / "none7"]
        tuned = ["tune", self.model, "--out", self.folder / "none8"]
        for command in (["eval", self.model], tuned, [*fresh, "--model.max_position_embeddings", 512]):
            refused(*command, "--data", self.text, "--sequence", 600, words="context")
        refused("eval", self.model, "--data", self.text, "--sequence", 100000, words="context")
        # Token ids of a file made with another tokenizer: the vocabulary has 256.
        outside, nothing = self.folder / "outside.bin", self.folder / "nothing.bin"
        outside.write_bytes(struct.pack("<500H", *[7] * 321, 256, *[7] * 178))
        nothing.write_bytes(b"")
        measured = ["convert", self.dense(), self.folder / "none9", "--shared-by", "importance"]
        for command in (["eval", self.model], ["inspect", self.model], tuned, [*fresh, "--model.vocab_size", 256], measured,
                        ["tokenizer", "decode", self.model]):
            refused(*command, "--file" if command[0] == "tokenizer" else "--data", outside,
                    words=["token id 256", "position 321", "vocabulary of 256"])
            refused(*command, "--file" if command[0] == "tokenizer" else "--data", nothing, words="empty")
        self.assertFalse((self.folder / "none9").exists())
        refused("train", *self.small, "--data", self.text, "--out", self.folder / "none6", "--sequence", 500,
                "--model.max_position_embeddings", 400000, "--sequence", 300000, words="too few")

    def test_shards_that_are_missing_or_torn(self):
        place = self.folder / "sharded"
        shutil.copytree(self.dense(), place)
        first, second, index = (place / name for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                                                          "model.safetensors.index.json"))
        (place / "model.safetensors").rename(first)
        data = first.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        names = {name: first.name for name in json.loads(data[8 : 8 + length]) if name != "__metadata__"}
        index.write_text(json.dumps({"weight_map": names}))
        evaluate = ["eval", place, "--data", self.text, "--sequence", 16]
        run(*evaluate)
        index.write_text(json.dumps({"weight_map": {**names, "model.more.weight": second.name}}))
        refused(*evaluate, words=[str(second), "missing", str(index)])
        second.write_bytes(data[:-8])
        refused(*evaluate, words=str(second))
        missing = dict(list(names.items())[:-1])
        index.write_text(json.dumps({"weight_map": missing}))
        refused(*evaluate, words=[str(first), "is not where the index says"])
        index.unlink()  # numbered shards say by themselves what belongs together
        refused(*evaluate, words=str(second))
        second.unlink()
        refused(*evaluate, words=second.name)

    def test_end_tokens_of_generation_config_count(self):
        """Chat models: config.json has the base model's end token, generation_config.json those of the chat."""
        place = self.folder / "chat"
        shutil.copytree(self.model, place)
        options = ["generate", place, "--prompt", "a small", "--max-tokens", 8, "--json"]
        free = json.loads(run(*options).stdout)
        self.assertEqual(free["tokens"], 8)
        (place / "generation_config.json").write_text(json.dumps({"eos_token_id": [free["ids"][0], 255]}))
        self.assertLess(json.loads(run(*options).stdout)["tokens"], 3)
        self.assertEqual(json.loads(run(*options, "--ignore-eos").stdout)["ids"], free["ids"])
        (place / "generation_config.json").write_text(json.dumps({"eos_token_id": "none"}))
        refused(*options, words=["generation_config.json", "eos_token_id"])

    def writes_fail_cleanly(self, place, words, **options):
        """Every command that writes: one line, and nothing half-written under the final name."""
        target = pathlib.Path(place)
        refused("convert", self.model, target / "out", words=words, **options)
        refused("convert", self.model, target / "out2", "--export", "hf", words=words, **options)
        refused("train", *self.small, "--data", self.text, "--out", target / "run", "--steps", 4, words=words, **options)
        for pattern in ("out*/model.safetensors", "run/model.safetensors", "run/checkpoints/step-*"):
            self.assertEqual(list(target.glob(pattern)), [])

    def mounted(self, options):
        """A small file system of memory, if we may have one."""
        place = pathlib.Path(tempfile.mkdtemp(prefix="mount_", dir=self.folder))
        if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True).returncode:
            self.skipTest("needs root and the right to mount")
        self.addCleanup(subprocess.run, ["umount", place], check=True)
        return place

    def test_full_disk(self):
        self.writes_fail_cleanly(self.mounted("size=64k"), "No space left")

    def test_full_disk_in_the_middle_of_training_keeps_the_checkpoint(self):
        place = self.mounted("size=4m")
        out, options = place / "run", [*self.small, "--data", self.text, "--checkpoint-every", 5, "--keep", 100]
        refused("train", *options, "--out", out, "--steps", 100000, words=["No space left", "checkpoints/step-", "--resume"])
        steps = sorted(int(path.name[5:]) for path in (out / "checkpoints").glob("step-*"))
        self.assertGreater(len(steps), 1)
        self.assertEqual(list((out / "checkpoints").glob(".*")), [], "a full disk gets its space back")
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        self.assertEqual(json_lines("train", "--resume", "--out", out, "--steps", steps[-1] + 3)[-1]["step"], steps[-1] + 3)

    def test_a_file_that_may_not_grow(self):
        """Works without root: the limit on file sizes stands for the full disk."""
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        place = self.folder / "limited"
        place.mkdir()
        self.writes_fail_cleanly(place, "File too large", preexec_fn=limit)

    def test_read_only_folder(self):
        if os.geteuid() == 0:
            place, words = self.mounted("ro"), "Read-only file system"
        else:
            place, words = self.folder / "locked", "Permission denied"
            place.mkdir(mode=0o555)
        self.writes_fail_cleanly(place, words)

    def test_loading_takes_the_memory_of_the_weights_once(self):
        """With MOH_TEST_LARGE=1 of 2 GB, where torch itself counts too: the whole peak is at most 1.1 times the weights."""
        tiny, large = self.folder / "tiny", self.folder / "large"
        is_large = os.environ.get("MOH_TEST_LARGE") == "1"
        write_model(tiny, 256, 64, 64, 1)
        size = write_model(large, 32000, 2048, 5504, 18) if is_large else write_model(large, 32000, 768, 2048, 8)
        self.assertGreater(size, 2e9 if is_large else 150e6)
        moh = self.folder / "large_moh"
        for name, arguments, factor in (
                ("generate", ["generate", "{}", "--prompt", "a", "--max-tokens", 2], 1.1),
                ("eval", ["eval", "{}", "--data", self.text, "--sequence", 32, "--batch", 1, "--max-windows", 2], 1.1),
                ("convert", ["convert", "{}", moh], 1.1),
                # In fp32 the weights that are kept are twice as large; the file's pages must not be kept beside them.
                ("fp32", ["generate", "{}", "--prompt", "a", "--max-tokens", 2, "--dtype", "fp32"], 2.2)):
            small = [str(argument).format(tiny) if argument != moh else self.folder / "tiny_moh" for argument in arguments]
            used = peak_bytes(*[str(argument).format(large) for argument in arguments])
            if not is_large:
                used -= peak_bytes(*small)
            print(f"{name}: {used / 1e6:.0f} MB for {size / 1e6:.0f} MB of weights, {used / size:.2f}", file=sys.stderr)
            self.assertLess(used, factor * size, name)
        kept = json.loads((moh / "config.json").read_text())
        self.assertEqual(kept["torch_dtype"], "bfloat16")
        self.assertLess((moh / "model.safetensors").stat().st_size, size + 100000)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
