"""GGUF files as models: written here by PyPI's gguf from random tiny models of transformers, in every type that is read,
changed as llama.cpp's converter changes them. What `moh convert --export hf` makes of them must be the same tensors to the
bit as PyPI's gguf dequantises, under the same configuration; and golden_tests compares what the models compute."""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import tokenizers
import torch

from golden_case import randomize, run_golden_tests, tensors_of, transformers, write_case
from safetensors.torch import load_file

try:
    import gguf
except ImportError as error:
    print(f"skipped: {error}; `scripts/setup.sh tests` installs it")
    sys.exit(77)

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2] / "build")
TYPES = gguf.GGMLQuantizationType
SMALL = dict(vocab_size=96, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=None)
LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=8192)
# Family, its name in llama.cpp, types of the matrices (taken in turn), changes of the configuration.
CASES = {
    "llama_f32": ("Llama", "llama", ["F32"], {}),
    "llama_f16": ("Llama", "llama", ["F16"], dict(attention_bias=True, mlp_bias=True)),
    "llama_bf16": ("Llama", "llama", ["BF16"], dict(tie_word_embeddings=True)),
    "llama_q4": ("Llama", "llama", ["Q4_1", "Q8_0", "Q4_0"], dict(tie_word_embeddings=True, rms_norm_eps=1e-5)),
    "llama_q5": ("Llama", "llama", ["Q5_0", "Q5_1"], dict(attention_bias=True, mlp_bias=True)),
    "llama3_1": ("Llama", "llama", ["Q4_K", "Q6_K"], dict(rope_parameters=LLAMA3_ROPE, head_dim=64)),
    "smollm3": ("SmolLM3", "smollm3", ["Q8_0"], dict(tie_word_embeddings=True)),
    "qwen2": ("Qwen2", "qwen2", ["Q5_K", "Q4_K"], {}),
    "qwen3": ("Qwen3", "qwen3", ["Q2_K", "Q3_K"], dict(head_dim=128, tie_word_embeddings=True)),
    "gemma": ("Gemma", "gemma", ["IQ4_NL", "IQ4_XS"], dict(head_dim=64, num_key_value_heads=1)),
    "gemma2": ("Gemma2", "gemma2", ["Q8_0"], dict(head_dim=64, query_pre_attn_scalar=64, sliding_window=16, attn_logit_softcapping=20.0,
                                                  final_logit_softcapping=10.0)),
    "gemma3": ("Gemma3", "gemma3", ["Q4_0", "Q6_K"], dict(head_dim=64, query_pre_attn_scalar=64, sliding_window=8, num_hidden_layers=7)),
    "phi3": ("Phi3", "phi3", ["F16", "Q8_0"], dict(head_dim=64, sliding_window=17,
                                                   rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5))),
    "olmo2": ("Olmo2", "olmo2", ["Q8_0", "Q5_0"], dict(rms_norm_eps=1e-5)),
    "granite": ("Granite", "granite", ["Q8_0"], dict(embedding_multiplier=3.0, attention_multiplier=0.1, residual_multiplier=0.5,
                                                     logits_scaling=2.0, tie_word_embeddings=True)),
    "linear": ("Llama", "llama", ["F16", "F32"], dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=4.0))),
}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER_NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
               "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
               "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
               "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.qkv_proj": "attn_qkv",
               "mlp.gate_up_proj": "ffn_up"}
NORMS_AROUND = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
                "post_feedforward_layernorm": "post_ffw_norm"}
GEMMAS = ("gemma", "gemma2", "gemma3")
# Where a block keeps its scales of 16 bits.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2],
          "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0]}
# By what the second of them is larger, so that numbers lie around zero.
SECOND = {"Q4_1": -7.5, "Q5_1": -15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}


def gguf_name(name, architecture):
    stem, suffix = name.rsplit(".", 1)
    if stem in NAMES:
        return f"{NAMES[stem]}.{suffix}"
    _, _, layer, part = stem.split(".", 3)
    names = LAYER_NAMES | NORMS_AROUND if architecture in ("gemma2", "gemma3", "olmo2") else LAYER_NAMES
    return f"blk.{layer}.{names[part]}.{suffix}"


def random_blocks(kind, rows, columns, random, deviation):
    """Any bytes are numbers; the scales make them as large as weights are."""
    values, size = gguf.GGML_QUANT_SIZES[TYPES[kind]]
    blocks = random.integers(0, 256, (rows, columns // values, size), dtype=np.uint8)

    def scale_by(numbers):
        for place, factor in zip(HALVES[kind], (1, SECOND.get(kind))):
            blocks[..., place:place + 2] = (factor * numbers).astype(np.float16)[..., None].view(np.uint8)
    numbers = random.uniform(0.5, 1.5, blocks.shape[:2])
    scale_by(numbers)
    scale_by(numbers * deviation / gguf.dequantize(blocks.reshape(rows, -1), TYPES[kind]).std())
    return blocks.reshape(rows, -1)


def pairs(rows, heads):
    """transformers' rows of q and k in llama.cpp's order."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def halves(rows, heads):
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_metadata(writer, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    if head_dim != config.hidden_size // config.num_attention_heads:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        frequencies = rope["rope_theta"] ** -(torch.arange(0, head_dim, 2).double() / head_dim)
        scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        writer.add_tensor("rope_freqs.weight", (frequencies / scaled.double()).float().numpy())
    for name in ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping"):
        if config.model_type != "qwen2" and getattr(config, name, None):
            getattr(writer, f"add_{name}")(getattr(config, name))
    for name, add in (("embedding_multiplier", writer.add_embedding_scale), ("attention_multiplier", writer.add_attention_scale),
                      ("residual_multiplier", writer.add_residual_scale), ("logits_scaling", writer.add_logit_scale)):
        if hasattr(config, name):
            add(getattr(config, name))
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)


def write_gguf(file, architecture, kinds, model, seed, **options):
    """Writes the model with random blocks as matrices, and gives it these weights. Returns the names by type."""
    random, config = np.random.default_rng(seed), model.config
    writer = gguf.GGUFWriter(file, architecture, **options)
    write_metadata(writer, config)
    names, state, matrices = {}, model.state_dict(), 0
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        numbers = tensor.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        reordered = heads and architecture in ("llama", "smollm3", "granite")
        if numbers.ndim == 1:
            stored = numbers + 1 if architecture in GEMMAS else pairs(numbers, heads) if reordered else numbers
            writer.add_tensor(gguf_name(name, architecture), np.ascontiguousarray(stored))
            state[name].copy_(torch.from_numpy(stored - 1 if architecture in GEMMAS else numbers))
            continue
        kind = kinds[matrices % len(kinds)]
        matrices += 1
        if kind in HALVES:
            blocks = random_blocks(kind, *numbers.shape, random, numbers.std())
        else:
            blocks = gguf.quantize(pairs(numbers, heads) if reordered else numbers, TYPES[kind])
        numbers = gguf.dequantize(blocks, TYPES[kind])
        state[name].copy_(torch.from_numpy(np.array(halves(numbers, heads) if reordered else numbers, dtype=np.float32)))
        names[name] = kind
        writer.add_tensor(gguf_name(name, architecture), blocks, raw_dtype=TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return names


def as_config(config):
    wanted = {key: value for key, value in config.to_dict().items() if key in SMALL or key in (
        "rms_norm_eps", "tie_word_embeddings", "head_dim", "rope_parameters", "model_type", "hidden_act", "attention_bias", "mlp_bias", "sliding_window", "layer_types",
        "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "hidden_activation", "embedding_multiplier",
        "attention_multiplier", "residual_multiplier", "logits_scaling")}
    return wanted


def export(folder, out, *options):
    done = subprocess.run([BUILD / "moh", "convert", folder, out, "--export", "hf", "--threads", "1", *options], capture_output=True, text=True)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    return load_file(out / "model.safetensors")


def check(name, folder, seed):
    family, architecture, kinds, changes = CASES[name]
    config = getattr(transformers, family + ("TextConfig" if family == "Gemma3" else "Config"))(**{**SMALL, **changes})
    config._attn_implementation = "eager"
    model = getattr(transformers, family + "ForCausalLM")(config)
    randomize(model, seed)
    with torch.no_grad():  # rows are longer than in other golden cases, and tolerances are the same
        for parameter in model.parameters():
            parameter.mul_(0.3 if parameter.dim() == 2 else 1)
    place = folder / name
    place.mkdir()
    options = dict(split_max_tensors=8) if name == "qwen2" else {}
    with torch.no_grad():
        types = write_gguf(place / "model.gguf", architecture, kinds, model, seed, **options)
    files = sorted(file.name for file in place.iterdir())
    assert (len(files) > 2) == (name == "qwen2"), files
    assert set(types.values()) == set(kinds), f"{name}: {types}"

    whole = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kinds[0] if len(kinds) == 1 else "", torch.float32)
    exported = export(place, folder / f"{name}_hf")
    state = {key: value for key, value in model.state_dict().items() if not (config.tie_word_embeddings and key == "lm_head.weight")}
    assert exported.keys() == state.keys(), f"{name}: {exported.keys() ^ state.keys()}"
    for key, value in state.items():
        assert exported[key].dtype == whole and torch.equal(exported[key], value.to(whole)), f"{name}: {key}"
    half = export(place / files[0], folder / f"{name}_half", "--dtype", "bf16")
    assert all(torch.equal(half[key], value.bfloat16()) for key, value in state.items()), name

    read = transformers.AutoConfig.from_pretrained(folder / f"{name}_hf")
    ours, theirs = as_config(read), as_config(config)
    if whole == torch.float32:
        for key, value in theirs.items():
            assert ours.get(key) == value or (key in ("head_dim", "pad_token_id") and value is None), f"{name}: {key} {ours.get(key)} {value}"
    ids = torch.randint(SMALL["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(seed))
    tensors = tensors_of(model, ids, seed)
    write_case(folder / f"{name}.safetensors", [name], tensors, **({} if whole == torch.float32 else {"load_as": "fp32"}))


WORDS = "One day a little girl found 12 red balloons, didn't she?\n\tShe said: \u00fcber naïve 日本語 🙂 words words  worded.\n"


def check_tokenizer(folder):
    """The tokenizer within a GGUF file is a Hugging Face folder's after a conversion: the same ids as PyPI's tokenizers give."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    described = json.loads(tokenizer.to_str())["model"]
    vocabulary = [token for token, _ in sorted(described["vocab"].items(), key=lambda entry: entry[1])]

    config = transformers.LlamaConfig(**{**SMALL, "vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 2})
    model = transformers.LlamaForCausalLM(config)
    place = folder / "with_tokenizer"
    place.mkdir()
    add_metadata = gguf.GGUFWriter.write_header_to_file

    def with_tokenizer(writer, *arguments):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(vocabulary)
        writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in vocabulary])
        writer.add_token_merges([" ".join(pair) for pair in described["merges"]])
        writer.add_add_bos_token(False)
        writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
        add_metadata(writer, *arguments)
    gguf.GGUFWriter.write_header_to_file = with_tokenizer
    try:
        with torch.no_grad():
            write_gguf(place / "model.gguf", "llama", ["Q8_0"], model, 1)
    finally:
        gguf.GGUFWriter.write_header_to_file = add_metadata

    export(place, folder / "with_tokenizer_hf")
    moh = folder / "with_tokenizer_moh"
    subprocess.run([BUILD / "moh", "convert", place, moh, "--activated", "0.5", "--threads", "1"], check=True, capture_output=True)
    text = folder / "words.txt"
    text.write_text(WORDS)
    expected = tokenizer.encode(WORDS).ids
    for source in (place, folder / "with_tokenizer_hf", moh):
        ids = folder / "ids.npy"
        subprocess.run([BUILD / "moh", "tokenizer", "encode", source, "--file", text, "--out", ids], check=True, capture_output=True)
        assert np.load(ids).tolist() == expected, source
    loaded = transformers.AutoTokenizer.from_pretrained(moh)
    assert loaded.encode(WORDS) == expected
    assert (loaded.bos_token, loaded.eos_token) == (special[0], special[2])
    assert loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|im_start|>hi<|im_end|>"
    assert loaded.encode("<|im_start|>hi<|im_end|>")[0] == 1


def main():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="moh_gguf_"))
    try:
        check_tokenizer(folder)
        for seed, name in enumerate(CASES):
            check(name, folder, seed)
        status = run_golden_tests(BUILD, folder)
    finally:
        shutil.rmtree(folder)
    sys.exit(status)


if __name__ == "__main__":
    main()
