"""Writes tests/fuzz/corpus: one small valid file of every form that a reader knows, for the fuzzer to mutate.
Files named by a hash are not from here: fuzzing found them, and they reach code that the files from here do not. Added by
`build-fuzz/TARGET_fuzzer -set_cover_merge=1 -use_counters=0 tests/fuzz/corpus/TARGET build-fuzz/found/TARGET`.
Needs torch and numpy (.venv); pictures are drawn with zlib and, if it is there, Pillow."""

import base64
import io
import json
import pathlib
import struct
import zlib

import numpy as np
import torch

CORPUS = pathlib.Path(__file__).parent / "corpus"


def put(target, name, content):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def safetensors(entries, data):
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


def make_safetensors():
    f32 = {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}
    put("safetensors", "two", safetensors({"__metadata__": {"format": "pt"}, "a": f32, "b.c": {
        "dtype": "BF16", "shape": [2], "data_offsets": [8, 12]}}, bytes(12)))
    put("safetensors", "scalar", safetensors({"s": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}}, bytes(8)))
    put("safetensors", "empty", safetensors({"e": {"dtype": "BOOL", "shape": [0, 3], "data_offsets": [0, 0]}}, b""))


def make_completion_request():
    put("completion_request", "completion", json.dumps(dict(
        model="m", prompt=["a", [1, 2]], max_tokens=5, temperature=0.5, top_p=0.9, top_k=-1, n=2, stream=True, echo=True,
        stream_options={"include_usage": True}, logprobs=2, stop=["x", "y"], seed=-3, logit_bias={"5": -1.5}, activated=0.5,
        presence_penalty=1, frequency_penalty=-1, repetition_penalty=1.1, user="u", ignore_eos=False, best_of=1, suffix="")))
    put("completion_request", "chat", json.dumps(dict(
        messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=3, max_completion_tokens=4, stop="z",
        tools=[{}], chat_template_kwargs={"a": 1}, response_format={"type": "text"})))


def make_config():
    dense = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=64, hidden_size=32, intermediate_size=48,
                 num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5,
                 max_position_embeddings=64, rope_theta=1e4, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 32}
    moh = {"router": "two-stage", "shared_heads": [1, 2], "top_k": [1, 1], "beta": 0.01}
    for name, change in {
        "dense": {}, "moh": {"moh": moh}, "norm": {"moh": {"router": "norm", "shared_heads": 2, "top_k": 1}},
        "llama3": {"rope_scaling": llama3, "eos_token_id": [2, 3]}, "linear": {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "new_rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "dtype": "bfloat16"},
        "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 16},
        "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
        "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "attention_bias": False},
        "gemma": {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "hidden_activation": "gelu_pytorch_tanh"},
        "remote": {"auto_map": {"AutoModelForCausalLM": "modeling_moh.LlamaForCausalLM"}, "torch_dtype": "float16"},
    }.items():
        put("config", name, json.dumps(dense | change))


def make_npy():
    for name, array in {"u2": np.arange(5, dtype="u2"), "u4": np.arange(3, dtype="u4"), "f8": np.zeros((2, 3)),
                        "scalar": np.array(7), "empty": np.zeros((0, 4), "f4")}.items():
        file = io.BytesIO()
        np.save(file, array)
        put("npy", name, file.getvalue())
    file = io.BytesIO()
    np.lib.format.write_array(file, np.arange(4, dtype="i8"), version=(3, 0))
    put("npy", "version3", file.getvalue())


def make_tokenizer_json():
    def tokenizer(pre, normalizer=None, decoder=None, added=(), post=None, **model):
        vocab = {token: i for i, token in enumerate(["<unk>", "a", "b", "ab", "Ġ", "Ġab", "▁", "▁a", "<0x41>", "é", "1", "c"])}
        merges = [["a", "b"], ["Ġ", "ab"], "▁ a"]
        return json.dumps({"added_tokens": list(added), "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post,
                           "decoder": decoder, "model": {"type": "BPE", "vocab": vocab, "merges": merges} | model},
                          ensure_ascii=False)

    def split(pattern, behavior, kind="Regex", invert=False):
        return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}

    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    llama3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
              r"|\s+(?!\S)|\s+")
    special = {"id": 12, "content": "<s>", "special": True, "lstrip": True, "rstrip": True}
    plain = {"id": 13, "content": "ab c", "single_word": True, "normalized": True}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    marks = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    fallback = {"type": "Sequence", "decoders": [marks, {"type": "ByteFallback"}, {"type": "Fuse"},
                                                 {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    put("tokenizer_json", "gpt2", tokenizer({"type": "ByteLevel"}, decoder={"type": "ByteLevel"}, added=[special]))
    put("tokenizer_json", "llama3", tokenizer(
        {"type": "Sequence", "pretokenizers": [split(llama3, "Isolated"), bytes_]}, ignore_merges=True, added=[special, plain],
        post={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]}))
    put("tokenizer_json", "qwen", tokenizer({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, split(r"\w+", "Removed", invert=True), bytes_]}, {"type": "NFC"}))
    put("tokenizer_json", "llama2", tokenizer(None, {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, spaces]}, fallback, [special, plain], byte_fallback=True, fuse_unk=True,
        unk_token="<unk>"))
    put("tokenizer_json", "mistral", tokenizer({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
                                               decoder={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}))
    put("tokenizer_json", "gemma", tokenizer(split(" ", "MergedWithPrevious", "String"), spaces, fallback))
    # Faults that were found once: replacements that grow without bounds, patterns that explode, and with a line end in them.
    grows = {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 40}
    put("tokenizer_json", "grows", tokenizer(None, {"type": "Sequence", "normalizers": [grows] * 8}))
    put("tokenizer_json", "explodes", tokenizer(split("(a|a|.)*(b|.)*(c|.)*$x", "Isolated")))
    put("tokenizer_json", "line_end", tokenizer(split("a\n[", "Isolated")))
    put("tokenizer_json", "spaces", tokenizer(None, added=[special | {"content": " "}, plain | {"content": "  ", "rstrip": True}]))
    put("tokenizer_json", "splits", tokenizer({"type": "Sequence", "pretokenizers": [
        split("[ab]", "Contiguous"), split("c", "MergedWithNext"), {"type": "Punctuation"}, {"type": "WhitespaceSplit"}]},
        {"type": "NFKD"}))


def make_tiktoken():
    lines = [base64.b64encode(bytes([i])).decode() + f" {i}" for i in range(256)]
    put("tiktoken", "bytes", "\n".join(lines + [base64.b64encode(b"ab").decode() + " 256"]) + "\n")
    put("tiktoken", "start", "\n".join(lines[:8]) + "\r\n")
    put("tiktoken", "tokens", "the thethe ababab  \n\n12345678<|eot_id|>")


def make_torch_file():
    for name, value in {"flat": {"a.weight": torch.zeros(2, 3), "a.bias": torch.ones(3, dtype=torch.bfloat16)},
                        "nested": {"state_dict": {"module.w": torch.zeros(4).half()[::2]}, "epoch": 3, "args": ("x", None, 1.5, [True])}}.items():
        file = io.BytesIO()
        torch.save(value, file)
        put("torch_file", name, file.getvalue())
    file = io.BytesIO()
    import zipfile
    torch.save({"w": torch.zeros(2)}, file)
    with zipfile.ZipFile(file) as archive:
        put("torch_file", "pickle", next(archive.read(n) for n in archive.namelist() if n.endswith("data.pkl")))


def make_gguf():
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    def file(values, tensors, data, version=3):
        out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
        for key, kind, content in values:
            out += text(key) + struct.pack("<I", kind) + content
        for name, dims, kind, offset in tensors:
            out += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)
        return out + bytes(-len(out) % 32) + data if tensors else out

    def numbers(kind, code, *items):
        return struct.pack("<IQ", kind, len(items)) + struct.pack(f"<{len(items)}{code}", *items)
    put("gguf", "values", file([("general.architecture", 8, text("llama")), ("u8", 0, b"\1"), ("i16", 3, struct.pack("<h", -2)),
                                ("f64", 12, struct.pack("<d", 1.5)), ("flag", 7, b"\1"), ("u64", 10, struct.pack("<Q", 7))], [], b""))
    put("gguf", "lists", file([("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
                               ("tokenizer.ggml.token_type", 9, numbers(5, "i", 1, 3)), ("scores", 9, numbers(6, "f", 0.5)),
                               ("general.alignment", 4, struct.pack("<I", 32))], [("a", (3,), 0, 0)], bytes(12)))
    for kind, values, size in ((0, 1, 4), (1, 1, 2), (2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24), (8, 32, 34), (10, 256, 84),
                               (11, 256, 110), (12, 256, 144), (13, 256, 176), (14, 256, 210), (20, 32, 18), (23, 256, 136), (30, 1, 2)):
        data = bytes(i * 37 % 256 for i in range(2 * size))
        put("gguf", f"type_{kind}", file([], [("w", (values, 2), kind, 0)], data, version=2))
    put("gguf", "two", file([], [("a", (8,), 0, 0), ("b", (32, 1), 8, 32)], bytes(32 + 34)))


def png(width, height, depth, color, rows):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(range(12))) if color == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def make_image():
    put("image", "rgb.png", png(3, 2, 8, 2, (b"\0" + bytes(9)) * 2))
    put("image", "alpha.png", png(2, 2, 8, 6, (b"\1" + bytes(8)) * 2))
    put("image", "palette.png", png(4, 2, 2, 3, b"\0\x1b\0\xe4"))
    put("image", "grey16.png", png(2, 1, 16, 0, b"\0" + bytes(4)))
    try:
        from PIL import Image
    except ImportError:
        return
    for mode in ("RGB", "L", "CMYK"):
        for progressive in (False, True):
            file = io.BytesIO()
            Image.new(mode, (9, 7)).save(file, "JPEG", quality=60, progressive=progressive)
            put("image", f"{mode.lower()}{'_progressive' if progressive else ''}.jpg", file.getvalue())


def make_chat_template():
    folder = pathlib.Path(__file__).parents[1] / "text" / "chat_templates"
    for file in sorted(folder.glob("*.jinja")):
        put("chat_template", file.stem, file.read_text())
    for i, line in enumerate(line for line in (folder / "constructs.txt").read_text().splitlines() if line):
        if i % 4 == 0 or "%}" in line:
            put("chat_template", f"construct{i}", line)


for make in (make_safetensors, make_config, make_completion_request, make_npy, make_tokenizer_json, make_tiktoken,
             make_torch_file, make_gguf, make_image, make_chat_template):
    make()
