"""Every family of LLaMA-like models: random tiny models made here by transformers, in the form its versions 5 and 4 write
config.json, compared by golden_tests (logits, hidden states, gradients, cache, greedy tokens, padding, saving back)."""

import json
import pathlib
import shutil
import sys
import tempfile

import torch

from golden_case import randomize, run_golden_tests, tensors_of, transformers, write_case

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2] / "build")
SMALL = dict(vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2, max_position_embeddings=128)
LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=32)
VERSION = int(transformers.__version__.split(".")[0])
CASES = {
    "llama1": ("Llama", dict(num_key_value_heads=6)),
    "llama2": ("Llama", dict(rms_norm_eps=1e-5)),
    "llama_linear": ("Llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0))),
    "llama3": ("Llama", dict(rope_parameters=dict(rope_type="default", rope_theta=500000.0), eos_token_id=[7, 9])),
    "llama3_1": ("Llama", dict(rope_parameters=LLAMA3_ROPE)),
    "llama3_2": ("Llama", dict(rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True, head_dim=16)),
    "llama_biases": ("Llama", dict(attention_bias=True, mlp_bias=True)),
    "smollm": ("Llama", dict(hidden_size=72, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)),
    "smollm3": ("SmolLM3", dict(no_rope_layer_interval=2, pad_token_id=None, bos_token_id=1, eos_token_id=2)),
    "smollm3_window": ("SmolLM3", dict(no_rope_layer_interval=2, use_sliding_window=True, sliding_window=6, pad_token_id=None,
                                       bos_token_id=1, eos_token_id=2)),
    "mistral_window": ("Mistral", dict(sliding_window=7)),
    "mistral": ("Mistral", dict(sliding_window=None, head_dim=12)),
    "qwen2": ("Qwen2", dict()),
    "qwen2_window": ("Qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=True)),
    "qwen3": ("Qwen3", dict(head_dim=16)),
    "qwen3_window": ("Qwen3", dict(head_dim=8, attention_bias=True, use_sliding_window=True, sliding_window=6,
                                   layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    "gemma": ("Gemma", dict(head_dim=16, num_key_value_heads=1, pad_token_id=None)),
}


def as_version_4(config):
    """config.json with the keys of transformers 4: rope_theta beside rope_scaling, torch_dtype, no layer_types."""
    old = dict(config)
    rope = dict(old.pop("rope_parameters"))
    old["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    old["rope_scaling"] = None if kind == "default" else {"rope_type": kind, **rope} if kind == "llama3" else {"type": kind, **rope}
    old["torch_dtype"] = old.pop("dtype")
    old["transformers_version"] = "4.40.0"
    if old["model_type"] == "qwen2" or "no_rope_layers" in old:
        old.pop("layer_types", None)
    if old["model_type"] == "gemma":
        old |= {"hidden_act": "gelu", "hidden_activation": None}
        old.pop("tie_word_embeddings", None)
    return old


def make(name, folder, seed, dtype=torch.float32):
    family, changes = CASES[name]
    if VERSION < 5 and "rope_parameters" in changes:
        changes = {**changes}
        rope = {**changes.pop("rope_parameters")}
        changes["rope_theta"] = rope.pop("rope_theta")
        changes["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config = getattr(transformers, family + "Config")(**{**SMALL, **changes})
    config._attn_implementation = "eager"
    model = getattr(transformers, family + "ForCausalLM")(config)
    randomize(model, seed)
    model.to(dtype)
    new, old = folder / f"{name}_new", folder / f"{name}_old"
    model.save_pretrained(new)
    written = json.loads((new / "config.json").read_text())
    folders = [new.name]
    if VERSION >= 5:
        assert "rope_parameters" in written and "dtype" in written, "transformers 5 writes these keys"
        old.mkdir()
        shutil.copy(new / "model.safetensors", old)
        (old / "config.json").write_text(json.dumps(as_version_4(written)))
        folders.append(old.name)
    if dtype != torch.float32:  # anew: converting a model converts its rotary frequencies too
        model = type(model).from_pretrained(new, dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(SMALL["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(seed))
    config = {} if dtype == torch.float32 else {"load_as": "fp32"}
    write_case(folder / f"{name}.safetensors", folders, tensors_of(model, ids, seed), **config)


def main():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="moh_families_"))
    try:
        for seed, name in enumerate(CASES):
            make(name, folder, seed)
        for name, dtype in (("llama3", torch.bfloat16), ("llama3_2", torch.float16), ("gemma", torch.float16),
                            ("qwen2", torch.bfloat16), ("mistral_window", torch.float16)):
            CASES[f"{name}_half"] = CASES[name]
            make(f"{name}_half", folder, 50, dtype)
        # Shards with an index, as large models have.
        for seed, (name, dtype) in enumerate((("llama2_new", torch.float32), ("qwen2_half_new", torch.bfloat16)), start=99):
            shards = folder / f"{name}_shards"
            model = transformers.AutoModelForCausalLM.from_pretrained(folder / name, dtype=dtype)
            model.save_pretrained(shards, max_shard_size="60KB")
            assert (shards / "model.safetensors.index.json").exists()
            model = type(model).from_pretrained(shards, dtype=torch.float32, attn_implementation="eager")
            ids = torch.randint(SMALL["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(seed))
            config = {} if dtype == torch.float32 else {"load_as": "fp32"}
            write_case(folder / f"{name}_shards.safetensors", [shards.name], tensors_of(model, ids, seed), **config)
        status = run_golden_tests(BUILD, folder)
    finally:
        shutil.rmtree(folder)
    sys.exit(status)


if __name__ == "__main__":
    main()
