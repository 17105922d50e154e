"""Model folders as people have them: torch.save's shards, several types of weights, names that something was wrapped around,
files that disagree, notes and pages in place of files. The oracle is transformers."""

import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from tool import MOH, json_lines, refused, run

try:
    import numpy as np
    import tokenizers
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
except ImportError as error:
    print(f"skipped: {error}; `scripts/setup.sh tests` installs it")
    sys.exit(77)

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="moh_folders_"))
ONE = ["--threads", 1]


def dense(name, **changes):
    """A random llama of bytes."""
    config = transformers.LlamaConfig(**{**dict(vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
                                                tie_word_embeddings=False), **changes})
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(FOLDER / name)
    return FOLDER / name


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


IDS = FOLDER / "ids.npy"


def perplexity(folder, *options):
    line, = json_lines("eval", folder, "--data", IDS, "--sequence", 64, *options, *ONE)
    return line["perplexity"]


def expected_perplexity(folder, **options):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).float()
    ids = torch.from_numpy(np.load(IDS).astype(np.int64))
    with torch.no_grad():
        windows = torch.stack([ids[i:i + 65] for i in range(0, len(ids) - 64, 64)])
        logits = model(windows[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).exp().item()


def assert_close(value, expected, tolerance=1e-4):
    assert abs(value - expected) <= tolerance * abs(expected), f"{value} is not {expected}"


def peak_of(*arguments):
    """Largest resident memory of a call, in bytes."""
    process = subprocess.Popen([MOH, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, told
    return usage.ru_maxrss * 1024


def test_the_authors_checkpoint():
    """MoH-LLaMA3-8B: 33 zip pickles with an index, 160,896 tokens, 32 heads over 8, and code that moh does not run."""
    out = FOLDER / "authors"
    out.mkdir()
    config = dict(architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=1, eos_token_id=2,
                  auto_map={"AutoConfig": "configuration_llama.LlamaConfig", "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"},
                  hidden_act="silu", hidden_size=256, initializer_range=0.02, intermediate_size=512, max_position_embeddings=8192,
                  model_type="llama", num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, pad_token_id=0,
                  pretraining_tp=1, rms_norm_eps=1e-5, rope_scaling=None, rope_theta=500000.0, tie_word_embeddings=False,
                  torch_dtype="bfloat16", transformers_version="4.42.3", use_cache=True, vocab_size=160896)
    generator = torch.Generator().manual_seed(3)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{k: v for k, v in config.items() if k != "auto_map"})).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1 + torch.randn(parameter.shape, generator=generator) * 0.1 if parameter.dim() == 1 else
                            torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)
    state = model.state_dict()
    shards = [{} for _ in range(33)]
    for name, tensor in state.items():
        layer = int(name.split(".")[2]) if ".layers." in name else 32 if name in ("lm_head.weight", "model.norm.weight") else 0
        shards[layer][name] = tensor
    names = [f"pytorch_model-{i + 1:05}-of-00033.bin" for i in range(33)]
    for shard, name in zip(shards, names):
        torch.save(shard, out / name)
    (out / "pytorch_model.bin.index.json").write_text(json.dumps({
        "metadata": {"total_size": sum(t.nbytes for t in state.values())},
        "weight_map": {key: name for shard, name in zip(shards, names) for key in shard}}))
    (out / "config.json").write_text(json.dumps(config))
    (out / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}))
    (out / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}))
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(alphabet + [f"piece{i}" for i in range(len(alphabet), config["vocab_size"])])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "modeling_llama.py").write_text("raise SystemExit('code of a model folder must not run')\n")
    np.save(FOLDER / "wide.npy", torch.randint(160896, (65,), generator=generator).numpy().astype(np.uint32))
    ids = torch.from_numpy(np.load(FOLDER / "wide.npy").astype(np.int64))
    with torch.no_grad():
        logits = model.float()(ids[None, :-1]).logits[0]
        expected = torch.nn.functional.cross_entropy(logits, ids[1:]).exp().item()
    measure = ["--data", FOLDER / "wide.npy", "--sequence", 64, *ONE]
    line, = json_lines("eval", out, *measure, "--read-as", "dense", "--dtype", "fp32")
    assert_close(line["perplexity"], expected)

    # It is the authors' MoH, half of the heads shared and a quarter routed, and converting says so in config.json.
    moh = json_lines("eval", out, *measure)[0]
    assert moh["active_heads"] == 0.75
    converted = FOLDER / "authors_moh"
    run("convert", out, converted, *ONE)
    written = json.loads((converted / "config.json").read_text())
    assert written["moh"]["shared_heads"] == 16 and written["moh"]["top_k"] == 8 and "auto_map" not in written
    assert not list(converted.glob("*.py")) and (converted / "generation_config.json").exists()
    again = json_lines("eval", converted, *measure)[0]
    assert again["perplexity"] == moh["perplexity"]
    saved = load_file(converted / "model.safetensors")
    assert saved.keys() == state.keys() and all(torch.equal(saved[key], value.bfloat16()) for key, value in state.items())

    # Mapped, not copied.
    weights = sum(value.nbytes // 2 for value in model.state_dict().values())  # fp32 by now, bf16 in the file
    empty = peak_of("eval", dense("empty"), "--data", FOLDER / "ids.npy", "--sequence", 64, *ONE)
    for name, peak in (("generate", peak_of("generate", out, "--prompt", "a", "--max-tokens", 2, *ONE)),
                       ("convert", peak_of("convert", out, FOLDER / "authors_again", *ONE))):
        assert peak - empty <= 1.1 * weights, f"{name}: {peak - empty} bytes for {weights} of weights"
    shutil.rmtree(out)
    shutil.rmtree(converted)


def test_shards_in_other_ways():
    """pytorch_model.bin, a state_dict in it, numbered shards without an index, and what a download left out."""
    folder = dense("plain")
    expected = expected_perplexity(folder)
    assert_close(perplexity(folder), expected)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for content in (state, {"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}, "epoch": 3}, {"model": state}):
        torch.save(content, folder / "pytorch_model.bin")
        assert_close(perplexity(folder), expected)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(state)
    for ending, save in (("bin", torch.save), ("safetensors", save_file)):
        stem = "model" if ending == "safetensors" else "pytorch_model"
        for i in range(3):
            save({name: state[name] for name in names[i::3]}, folder / f"{stem}-{i + 1:05}-of-00003.{ending}")
        assert_close(perplexity(folder), expected)
        (folder / f"{stem}-00002-of-00003.{ending}").unlink()
        refused("eval", folder, "--data", IDS, words=[f"{stem}-00002-of-00003.{ending} is missing"])
        for file in folder.glob(f"{stem}-*"):
            file.unlink()
    for name, words in {"adapter_model.safetensors": "merge_and_unload", "consolidated.00.pth": "Meta's or Mistral's own layout",
                        "tf_model.h5": "another framework", "model.safetensors.incomplete": "a download is not complete"}.items():
        (folder / name).write_bytes(b"")
        refused("eval", folder, "--data", IDS, words=["has no weights", words])
        (folder / name).unlink()
    for content, words in {"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n": "git lfs pull",
                           "<!DOCTYPE html><html>Access to model is restricted</html>": "a web page"}.items():
        for name in ("model.safetensors", "pytorch_model.bin", "x.gguf"):
            (folder / name).write_text(content)
            target = folder / name if name.endswith("gguf") else folder
            if not name.endswith("gguf"):
                refused("eval", target, "--data", IDS, words=[name, words])
            (folder / name).unlink()
    # The same of folders without config.json, and a file where the folder is meant.
    for name, words in {"adapter_model.safetensors": "merge_and_unload", "consolidated.00.pth": "Meta's or Mistral's own layout",
                        "global_step100": "zero_to_fp32.py"}.items():
        bare = FOLDER / f"bare_{name}"
        bare.mkdir()
        (bare / name).write_bytes(b"")
        refused("eval", bare, "--data", IDS, words=["no config.json", words])
    whole = dense("whole")
    refused("eval", whole / "model.safetensors", "--data", IDS, words=["did you mean the folder", str(whole)])
    # Numbers of 8 and 4 bits that others made: what config.json says comes before what the weights look like.
    for key, tensor in {"quantization_config": torch.zeros(2, 2).to(torch.float8_e4m3fn), "quantization": torch.zeros(2, dtype=torch.uint32)}.items():
        quantized = dense(key)
        edit(quantized, **{key: {"bits": 4}})
        save_file({"model.layers.0.self_attn.q_proj.weight": tensor}, quantized / "model.safetensors")
        refused("eval", quantized, "--data", IDS, words=["quantised", key])
    # A model inside: the cache of huggingface_hub, and a Trainer's checkpoints.
    cache = FOLDER / "models--a--b"
    shutil.copytree(dense("inner"), cache / "snapshots" / "abc")
    refused("eval", cache, "--data", IDS, words=["did you mean", "snapshots/abc?"])


def test_types_that_are_mixed_become_the_configurations():
    for kept in ("lm_head", "embed_tokens", "norm"):
        folder = dense(f"mixed_{kept}", dtype="bfloat16")
        state = load_file(folder / "model.safetensors")
        save_file({k: v.float() if kept in k else v.bfloat16() for k, v in state.items()}, folder / "model.safetensors")
        for dtype, wanted in (("bfloat16", torch.bfloat16), ("torch.float16", torch.float16), ("float32", torch.float32)):
            edit(folder, dtype=dtype)
            moh = FOLDER / f"mixed_{kept}_{wanted}"
            run("convert", folder, moh, "--activated", 0.5, *ONE)
            assert {tensor.dtype for tensor in load_file(moh / "model.safetensors").values()} == {wanted}
        edit(folder, dtype="bfloat16")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        # Weights as transformers has them, products in bf16.
        assert_close(perplexity(folder), expected_perplexity(folder), 0.02)
        run("generate", folder, "--prompt", "one", "--max-tokens", 3, *ONE)


def test_a_head_that_differs_from_its_tied_embedding_is_kept():
    folder = dense("untied", tie_word_embeddings=False)
    state = load_file(folder / "model.safetensors")
    edit(folder, tie_word_embeddings=True)
    expected = expected_perplexity(folder)
    told = run("eval", folder, "--data", IDS, "--sequence", 64, "--json", *ONE)
    assert_close(json.loads(told.stdout)["perplexity"], expected)
    assert "lm_head.weight differs from the embedding" in told.stderr
    out = FOLDER / "untied_moh"
    run("convert", folder, out, *ONE)
    assert torch.equal(load_file(out / "model.safetensors")["lm_head.weight"], state["lm_head.weight"])
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    # The same tensor twice, and the head alone, are the tied model.
    for change in ({"lm_head.weight": state["model.embed_tokens.weight"].clone()}, {"model.embed_tokens.weight": None}):
        save_file({k: v for k, v in {**state, **change}.items() if v is not None}, folder / "model.safetensors")
        told = run("eval", folder, "--data", IDS, "--sequence", 64, "--json", *ONE)
        assert_close(json.loads(told.stdout)["perplexity"], expected_perplexity(folder))
        assert "differs" not in told.stderr


def test_rope_scaling_goes_before_rope_parameters():
    folder = dense("rope")
    linear, default = {"rope_type": "linear", "factor": 2.0}, {"rope_type": "default", "rope_theta": 5e5}
    values = set()
    for changes in (dict(rope_scaling=linear, rope_parameters=default), dict(rope_scaling=linear, rope_parameters=default, rope_theta=3e5),
                    dict(rope_scaling=None, rope_parameters=default), dict(rope_scaling={}, rope_parameters=default),
                    dict(rope_scaling={**linear, "rope_theta": 7e5}, rope_parameters={**default, "factor": 4.0}, rope_theta=3e5)):
        edit(folder, **changes)
        assert_close(perplexity(folder), expected_perplexity(folder))
        values.add(round(perplexity(folder), 4))
    assert len(values) >= 3


def test_names_that_something_was_wrapped_around():
    vit = pathlib.Path(__file__).parents[2] / "examples" / "moh-vit-cifar"
    state = {k: v.float() for k, v in load_file(vit / "model.safetensors").items()}
    file = FOLDER / "c.pth"
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod."):
        torch.save({"state_dict" if prefix.startswith("model") else "model": {prefix + k: v for k, v in state.items()}}, file)
        out = FOLDER / "wrapped"
        run("convert", file, out, "--preset", "moh-vit-cifar", *ONE)
        assert load_file(out / "model.safetensors").keys() == state.keys(), prefix
        shutil.rmtree(out)
    # Numbers of more than 64 bits beside the weights: NumPy's generators have them.
    torch.save({"model": state, "rng": np.random.PCG64(1).state, "small": -(2 ** 63), "wide": -(2 ** 80)}, file)
    run("convert", file, FOLDER / "wide_numbers", "--preset", "moh-vit-cifar", *ONE)
    # Nothing that moh knows: what is said does not name the command that was just run.
    torch.save({"model": {"a.weight": torch.zeros(2)}}, file)
    told = refused("convert", file, FOLDER / "nothing")
    assert "moh convert" not in told and "patch_embed1.proj.weight" in told


def test_compressed_npz():
    random = np.random.default_rng(0)
    real, made = random.normal(size=(300, 8)), random.normal(size=(280, 8)) + 0.1
    statistics = dict(mu=real.mean(0), sigma=np.cov(real, rowvar=False))
    np.savez(FOLDER / "made.npz", features=made)
    values = []
    for save, content in ((np.savez, statistics), (np.savez_compressed, statistics), (np.savez, dict(features=real)),
                          (np.savez_compressed, dict(features=real))):
        save(FOLDER / "real.npz", **content)
        line, = json_lines("eval", "--real", FOLDER / "real.npz", "--generated", FOLDER / "made.npz")
        values.append(line)
    assert values[0] == values[1] and values[2] == values[3] and values[0], values
    damaged = bytearray((FOLDER / "real.npz").read_bytes())
    damaged[200] ^= 0xff
    (FOLDER / "real.npz").write_bytes(damaged)
    refused("eval", "--real", FOLDER / "real.npz", "--generated", FOLDER / "made.npz", words=["[zip]", "damaged"])


def test_a_resume_with_another_batch_reads_on():
    np.save(FOLDER / "t.npy", np.random.default_rng(0).integers(3, 200, size=16 * 200 + 1).astype(np.uint16))
    small = ["--preset", "moh-llm-tiny", "--model.num_hidden_layers", 1, "--model.hidden_size", 32, "--model.num_attention_heads", 4,
             "--model.intermediate_size", 32, "--model.vocab_size", 256, "--sequence", 16, "--data", FOLDER / "t.npy", "--log-every", 1,
             "--lr", "1e-30", "--final-lr", 0, "--weight-decay", 0, *ONE]  # nothing is learnt: a loss tells which windows were read

    def losses(out):
        return {line["step"]: line["loss"] for line in map(json.loads, open(out / "log.jsonl")) if "loss" in line}
    straight, changed = FOLDER / "straight", FOLDER / "changed"
    run("train", *small, "--out", straight, "--batch", 4, "--steps", 16)
    run("train", *small, "--out", changed, "--batch", 8, "--steps", 4, "--checkpoint-every", 4)
    run("train", "--resume", "--out", changed, "--batch", 4, "--steps", 8, "--checkpoint-every", 4)
    run("train", "--resume", "--out", changed, "--batch", 2, "--steps", 12)
    a, b = losses(straight), losses(changed)
    for step in range(4):  # windows 32 to 47
        assert abs(b[5 + step] - a[9 + step]) < 1e-4, (a, b)
    for step in range(2):  # 48 to 55
        assert abs((b[9 + 2 * step] + b[10 + 2 * step]) / 2 - a[13 + step]) < 1e-4, (a, b)
    # Checkpoints of before do not say how many examples they have seen, but their batch size.
    old = FOLDER / "old"
    run("train", *small, "--out", old, "--batch", 8, "--steps", 4, "--checkpoint-every", 4)
    for file in old.glob("checkpoints/*/trainer.json"):
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "examples"}))
    run("train", "--resume", "--out", old, "--batch", 4, "--steps", 5)
    assert abs(losses(old)[5] - a[9]) < 1e-4


def test_other_files_of_a_model_are_kept():
    folder = dense("companions")
    kept = {"chat_template.jinja": "{{ messages }}", "additional_chat_templates/tool.jinja": "{{ tools }}", "chat_template.json": "{}",
            "generation_config.json": "{}", "README.md": "card", "LICENSE": "terms", "preprocessor_config.json": "{}",
            "processor_config.json": "{}"}
    lost = {"modeling_x.py": "raise", "model.safetensors.index.json": "{}", "original/consolidated.00.pth": "x", "original/params.json": "{}",
            "onnx/model.onnx": "x", "run.json": "{}", ".cache/note": "x", "pytorch_model.bin": "x", "inner/config.json": "{}"}
    for name, content in {**kept, **lost}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    (folder / "loop").symlink_to(folder)
    (folder / "linked.txt").symlink_to(folder / "LICENSE")
    moh, hf, tuned = (FOLDER / name for name in ("companions_moh", "companions_hf", "companions_tuned"))
    run("convert", folder, moh, "--activated", 0.5, *ONE)
    run("convert", moh, hf, "--export", "hf", *ONE)
    run("tune", moh, "--data", IDS, "--out", tuned, "--steps", 1, "--batch", 2, "--sequence", 16, *ONE)
    for out in (moh, hf, tuned):
        for name, content in {**kept, "linked.txt": "terms"}.items():
            assert (out / name).read_text() == content, f"{out}: {name}"
        for name in lost:
            assert not (out / name).exists() or (name == "run.json" and out == tuned), f"{out}: {name}"
        assert not (out / "loop").exists()
    # A new model takes the tokenizer, not the card or the licence of the folder that it is from.
    new = FOLDER / "companions_new"
    run("train", "--preset", "llm-tiny", "--tokenizer", folder, "--data", IDS, "--out", new, "--steps", 1, "--batch", 1, "--sequence", 16,
        "--model.vocab_size", 260, *ONE)
    assert (new / "config.json").exists() and not (new / "LICENSE").exists()


def test_text_is_text():
    folder, text = dense("text"), "A line of text, naïve and plain.\n" * 40
    measure = ["--sequence", 32, "--json", *ONE]
    file = FOLDER / "a.txt"
    for content, words in ((text.encode("utf-16"), "UTF-16"), (text.encode("utf-16-be"), "UTF-16"), (text.encode("utf-32"), "UTF-32"),
                           (gzip.compress(text.encode()), "gunzip"), (b"PK\3\4" + bytes(100), "unzip"), (os.urandom(4000), "binary"),
                           (b"PAR1" + bytes(range(256)) * 4 + b"PAR1", "Parquet")):
        file.write_bytes(content)
        refused("eval", folder, "--data", file, *measure, words=["a.txt", words])
    for content in (text.encode(), text.encode("latin-1"), b"\xef\xbb\xbf" + text.encode(), text.encode() + b"\0", "日本語のテキスト。".encode() * 30):
        file.write_bytes(content)
        run("eval", folder, "--data", file, *measure)
    # In a folder: hidden files (macOS writes ._a.txt) are none of the data, links are.
    several = FOLDER / "texts"
    several.mkdir()
    (several / "a.txt").write_text(text)
    alone = json.loads(run("eval", folder, "--data", several, *measure).stdout)
    (several / "._a.txt").write_bytes(b"\0\5\x16\7" + bytes(range(256)) * 4)
    with_hidden = json.loads(run("eval", folder, "--data", several, *measure).stdout)
    assert with_hidden["tokens"] == alone["tokens"] and with_hidden["perplexity"] == alone["perplexity"]
    (FOLDER / "b.txt").write_text(text)
    (several / "b.txt").symlink_to(FOLDER / "b.txt")
    assert json.loads(run("eval", folder, "--data", several, *measure).stdout)["tokens"] > 1.9 * alone["tokens"]


def test_folders_of_pictures():
    from PIL import Image
    vit = pathlib.Path(__file__).parents[2] / "examples" / "moh-vit-cifar"
    pictures = FOLDER / "pictures"
    (pictures / "deep" / "er").mkdir(parents=True)
    random = np.random.default_rng(0)

    def picture(path):
        Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    for name in ("a.png", "b.JPG", "deep/c.jpeg", "deep/er/d.png"):
        picture(pictures / name)
    outside = FOLDER / "outside"
    outside.mkdir()
    picture(outside / "e.png")
    (pictures / "linked").symlink_to(outside)
    (pictures / "deep" / "loop").symlink_to(pictures)
    for name in (".hidden.png", "._a.png"):
        (pictures / name).write_bytes(b"no picture")
    (pictures / "__MACOSX").mkdir()
    (pictures / "__MACOSX" / "x.png").write_bytes(b"no picture")
    (pictures / "notes.txt").write_text("")
    line, = json_lines("features", vit, pictures, "--out", FOLDER / "f.npz", *ONE)
    assert line["images"] == 5 and line["skipped"] == 0, line
    (pictures / "broken.png").write_bytes(b"no picture")
    line, = json_lines("features", vit, pictures, "--out", FOLDER / "f.npz", *ONE)
    assert line["images"] == 5 and line["skipped"] == 1 and np.load(FOLDER / "f.npz")["features"].shape[0] == 5, line
    assert "1 pictures cannot be read" in run("features", vit, pictures, "--out", FOLDER / "f.npz", *ONE).stdout
    refused("features", vit, pictures / "__MACOSX", "--out", FOLDER / "g.npz", words=["none of 1 pictures can be read", "x.png"])


def main():
    np.save(IDS, np.random.default_rng(1).integers(0, 256, 64 * 3 + 1).astype(np.uint16))
    try:
        for name, test in list(globals().items()):
            if name.startswith("test_") and (len(sys.argv) < 2 or sys.argv[1] in name):
                test()
                print(name)
    finally:
        shutil.rmtree(FOLDER)


if __name__ == "__main__":
    main()
