"""Every family of LLaMA-like models: random tiny models made here by transformers, in the form its versions 5 and 4 write
config.json, compared by golden_tests (logits, hidden states, gradients, cache, greedy tokens, padding, saving back)."""

import json
import pathlib
import shutil
import subprocess
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
    "gemma2": ("Gemma2", dict(head_dim=16, num_key_value_heads=3, pad_token_id=None, sliding_window=6, query_pre_attn_scalar=24,
                              attn_logit_softcapping=2.0, final_logit_softcapping=12.0)),
    "gemma2_no_caps": ("Gemma2", dict(head_dim=8, pad_token_id=None, attn_logit_softcapping=None, final_logit_softcapping=None)),
    "gemma3": ("Gemma3", dict(head_dim=16, pad_token_id=None, sliding_window=6, query_pre_attn_scalar=20,
                              layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    "gemma3_linear": ("Gemma3", dict(
        head_dim=16, pad_token_id=None, layer_types=["full_attention", "sliding_attention", "full_attention"], sliding_window=5,
        rope_parameters={"full_attention": dict(rope_type="linear", rope_theta=1000000.0, factor=8.0),
                         "sliding_attention": dict(rope_type="default", rope_theta=5000.0)})),
    "phi3": ("Phi3", dict(pad_token_id=None, bos_token_id=1, eos_token_id=2)),
    "phi3_partial": ("Phi3", dict(hidden_size=96, sliding_window=7, pad_token_id=None, bos_token_id=1, eos_token_id=2,
                                  rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5))),
    "olmo2": ("Olmo2", dict(pad_token_id=None, eos_token_id=2)),
    "granite": ("Granite", dict(embedding_multiplier=3.0, attention_multiplier=0.3, residual_multiplier=0.6, logits_scaling=2.0,
                                tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}  # the others are named after the model
# Converted to MoH, with the authors' way of gating written as hooks on transformers' dense model.
CONVERTED = {"gemma2": ["--activated", 0.5], "gemma3": ["--activated", 0.5], "phi3_partial": ["--activated", 0.5],
             "olmo2": ["--activated", 0.67], "granite": ["--activated", 0.5]}

OF_TORCH = {"llama2", "smollm", "smollm3", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "olmo2", "granite"}  # every family, and a tied one


def as_version_4(config):
    """config.json with the keys of transformers 4: rope_theta beside rope_scaling, torch_dtype, no layer_types."""
    old = dict(config)
    rope = dict(old.pop("rope_parameters"))
    if "full_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    old["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope.pop("rope_type")
    old["rope_scaling"] = None if kind == "default" else {"rope_type": kind, **rope} if kind == "llama3" else {"type": kind, **rope}
    old["torch_dtype"] = old.pop("dtype")
    old["transformers_version"] = "4.40.0"
    if old["model_type"] in ("qwen2", "gemma2") or "no_rope_layers" in old:
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
    config = getattr(transformers, CONFIGS.get(family, family + "Config"))(**{**SMALL, **changes})
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
        if name in OF_TORCH:  # weights as torch.save writes them, the older way
            of_torch = folder / f"{name}_bin"
            of_torch.mkdir()
            shutil.copy(old / "config.json", of_torch)
            torch.save(model.state_dict(), of_torch / "pytorch_model.bin")
            folders.append(of_torch.name)
    if dtype != torch.float32:  # anew: converting a model converts its rotary frequencies too
        model = type(model).from_pretrained(new, dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(SMALL["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(seed))
    config = {} if dtype == torch.float32 else {"load_as": "fp32"}
    write_case(folder / f"{name}.safetensors", folders, tensors_of(model, ids, seed), **config)
    if name in CONVERTED:
        moh = folder / f"{name}_moh"
        command = [str(BUILD / "moh"), "convert", str(new), str(moh), *map(str, CONVERTED[name])]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        gate_heads(model, json.loads((moh / "config.json").read_text())["moh"])
        model.zero_grad()
        write_case(folder / f"{name}_moh.safetensors", [moh.name], tensors_of(model, ids, seed))


def gate_heads(model, moh):
    """Heads with the longest queries and the first, shared ones keep their outputs; the others' are zero."""
    heads, shared, top_k = model.config.num_attention_heads, moh["shared_heads"], moh["top_k"]
    assert 0 < shared + top_k < heads and moh["router"] == "norm"
    for layer in model.model.layers:
        attention = layer.self_attn

        def decide(module, inputs, output, attention=attention):
            query = output[..., : heads * attention.head_dim].unflatten(-1, (heads, -1))
            best = query.float().norm(dim=-1)[..., shared:].topk(top_k).indices + shared
            gates = torch.zeros(query.shape[:-1])
            gates[..., :shared] = 1
            attention.gates = gates.scatter(-1, best, 1.0)

        def gate(module, inputs, attention=attention):
            return (inputs[0].unflatten(-1, (heads, -1)) * attention.gates.unsqueeze(-1)).flatten(-2)

        getattr(attention, "q_proj", getattr(attention, "qkv_proj", None)).register_forward_hook(decide)
        attention.o_proj.register_forward_pre_hook(gate)


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
