"""`moh convert --export hf`: transformers loads the folder with trust_remote_code and computes what moh computes, with and
without libmoh.so; generate() with its cache gives the same tokens; without trust_remote_code it is no dense model."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="moh_export_"))
os.environ["HF_HOME"] = str(FOLDER / "huggingface")  # remote code is copied there

import numpy as np  # noqa: E402
import torch  # noqa: E402

from golden_case import randomize, run_golden_tests, tensors_of, transformers, write_case  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2] / "build")
SMALL = dict(vocab_size=96, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=8,
             num_key_value_heads=4, max_position_embeddings=128)
# Token ids: the models' vocabulary is too small for bytes.
CALIBRATION = ["--data", FOLDER / "ids.npy", "--calibration-windows", 4, "--calibration-sequence", 32]
CASES = {
    "llama_norm": ("Llama", {}, ["--activated", 0.75]),
    "llama_straight_through_all": ("Llama", {}, ["--activated", 0.5, "--straight-through", "all"]),
    "llama_two_stage": ("Llama", {}, ["--activated", 0.75, "--router", "two-stage"]),
    "llama_one_shared": ("Llama", {}, ["--activated", 0.5, "--top-k", 3, "--router", "two-stage"]),
    "llama_none_shared": ("Llama", {}, ["--activated", 0.5, "--shared", 0, "--router", "two-stage"]),
    "llama_all_shared": ("Llama", {}, ["--activated", 0.5, "--shared", 0.5, "--router", "two-stage"]),
    "llama_order": ("Llama", {}, ["--activated", 0.5, "--shared-by", "importance", *CALIBRATION]),
    "llama_order_two_stage": ("Llama", {}, ["--activated", 0.75, "--router", "two-stage", "--shared-by", "importance", *CALIBRATION]),
    "llama_best": ("Llama", {}, ["--recipe", "best", "--activated", 0.6, *CALIBRATION]),
    "llama_best_groups": ("Llama", {}, ["--recipe", "best", "--activated", 0.5, "--select", "kv-group", *CALIBRATION]),
    "llama_best_numbers": ("Llama", {}, ["--recipe", "best", "--activated", 0.5, "--choose", "top-k", "--weighted", *CALIBRATION]),
    "llama_budget": ("Llama", {}, ["--activated", 0.5, "--budget", "global", *CALIBRATION]),
    "llama_groups": ("Llama", {}, ["--activated", 0.75, "--select", "kv-group", "--top-k", 4]),
    "llama_few_groups": ("Llama", {}, ["--activated", 0.75, "--select", "kv-group", "--shared", 0.5]),
    "llama_groups_two_stage": ("Llama", {}, ["--activated", 0.75, "--select", "kv-group", "--router", "two-stage"]),
    "llama_groups_order": ("Llama", {}, ["--activated", 0.5, "--select", "kv-group", "--shared-by", "importance", *CALIBRATION]),
    "mistral": ("Mistral", dict(sliding_window=7), ["--activated", 0.75]),
    "qwen2": ("Qwen2", {}, ["--activated", 0.5]),
    "qwen3": ("Qwen3", dict(head_dim=16), ["--activated", 0.75]),
    "gemma": ("Gemma", dict(head_dim=16, num_key_value_heads=1, pad_token_id=None), ["--activated", 0.5]),
    "gemma3": ("Gemma3", dict(head_dim=16, pad_token_id=None, sliding_window=6, query_pre_attn_scalar=20,
                              layer_types=["sliding_attention", "full_attention"]), ["--activated", 0.5]),
    "olmo2": ("Olmo2", dict(pad_token_id=None, eos_token_id=2), ["--activated", 0.75, "--router", "two-stage"]),
    "granite": ("Granite", dict(embedding_multiplier=3.0, attention_multiplier=0.3, residual_multiplier=0.6, logits_scaling=2.0),
                ["--activated", 0.5]),
    "smollm3": ("SmolLM3", dict(no_rope_layer_interval=2, pad_token_id=None, bos_token_id=1, eos_token_id=2), ["--activated", 0.5]),
}


def moh(*arguments):
    result = subprocess.run([str(BUILD / "moh"), *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result


def make(name, seed):
    """A dense random model, converted and exported; gates of the trained router are made to differ."""
    family, changes, options = CASES[name]
    config = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else family + "Config")(**{**SMALL, **changes})
    model = getattr(transformers, family + "ForCausalLM")(config)
    randomize(model, seed)
    model.save_pretrained(FOLDER / f"{name}_dense")
    moh("convert", FOLDER / f"{name}_dense", FOLDER / f"{name}_moh", *options)
    weights = FOLDER / f"{name}_moh" / "model.safetensors"
    tensors = load_file(weights)
    for key in tensors:
        if ".wg" in key:
            tensors[key] = tensors[key] * 10
    save_file(tensors, weights, metadata={"format": "pt"})
    moh("convert", "--export", "hf", FOLDER / f"{name}_moh", FOLDER / f"{name}_hf")


def load(name):
    return transformers.AutoModelForCausalLM.from_pretrained(FOLDER / f"{name}_hf", trust_remote_code=True)


def check_generate(model, tokens):
    prompt = tokens[: len(tokens) - 12]
    out = model.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]), max_new_tokens=12, do_sample=False,
                         eos_token_id=None, pad_token_id=0)
    assert torch.equal(out[0], tokens), f"generate() with a cache: {out[0].tolist()}, without: {tokens.tolist()}"


def check_package_has_the_same_file(names):
    """What the Python package makes of the file for a family is what the tool writes."""
    path = pathlib.Path(__file__).parents[2] / "python" / "moh" / "_families.py"
    spec = importlib.util.spec_from_file_location("families", path)
    families = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(families)
    seen = set()
    for name in names:
        family = transformers.AutoConfig.from_pretrained(FOLDER / f"{name}_dense").model_type
        seen.add(family)
        expected = (FOLDER / f"{name}_hf" / "modeling_moh.py").read_text()
        assert families._Finder().get_source(families._PREFIX + family) == expected, family
    assert seen == families.FAMILIES.keys() - {"gemma2"}, f"families that this test exports: {seen}"  # gemma2: of this test without caps


def main():
    draw = torch.Generator().manual_seed(0)
    np.save(FOLDER / "ids.npy", torch.randint(SMALL["vocab_size"], (400,), generator=draw).numpy().astype("uint16"))
    plain = {}
    for seed, name in enumerate(CASES):
        make(name, seed)
        model = load(name)
        ids = torch.randint(SMALL["vocab_size"], (2, 30), generator=torch.Generator().manual_seed(seed))
        plain[name] = tensors = tensors_of(model, ids, seed)
        check_generate(model, tensors["greedy.tokens"])
        write_case(FOLDER / f"{name}.safetensors", [f"{name}_moh", f"{name}_hf"], tensors, straight_through=True)
    assert not hasattr(torch.ops.moh, "head_attention")
    torch.ops.load_library(str(BUILD / "libmoh.so"))
    for seed, name in enumerate(CASES):
        model = load(name)
        tensors = tensors_of(model, plain[name]["in.input_ids"], seed)
        check_generate(model, tensors["greedy.tokens"])
        for key, expected in plain[name].items():
            torch.testing.assert_close(tensors[key], expected, rtol=1e-4, atol=5e-5, msg=lambda text: f"{name} {key}: {text}")

    check_package_has_the_same_file(CASES)

    # Saved by transformers, the model is still one of ours; a dense model needs no code; a MoH one cannot pass for dense.
    load("qwen3").save_pretrained(FOLDER / "again")
    moh("inspect", FOLDER / "again")
    moh("convert", "--export", "hf", FOLDER / "qwen2_dense", FOLDER / "dense_hf")
    transformers.AutoModelForCausalLM.from_pretrained(FOLDER / "dense_hf")
    try:
        transformers.AutoModelForCausalLM.from_pretrained(FOLDER / "llama_norm_hf", trust_remote_code=False)
        raise SystemExit("a MoH folder must not load without its code")
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    return run_golden_tests(BUILD, FOLDER)


if __name__ == "__main__":
    try:
        status = main()
    finally:
        shutil.rmtree(FOLDER)
    sys.exit(status)
