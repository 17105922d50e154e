"""An exported model stays a MoH model in whatever transformers and its neighbours do with it: attention implementations,
caches, padding, continuous batching, adapters, quantizers, offloading, threads, copies, training, compilation; with and
without libmoh.so. The oracle is the dense model of transformers with gates put onto it from outside, formulas in fp64."""

import concurrent.futures
import copy
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import warnings

FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="moh_transformers_"))
os.environ["HF_HOME"] = str(FOLDER / "huggingface")  # remote code is copied there
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch  # noqa: E402

from golden_case import randomize, transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2] / "build")
logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")
SIZES = dict(vocab_size=96, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=8,
             num_key_value_heads=4, max_position_embeddings=128, bos_token_id=1, eos_token_id=2)
IDS = torch.randint(5, 90, (2, 24), generator=torch.Generator().manual_seed(0))
ROUTERS = {"norm": ["--activated", 0.5], "two": ["--activated", 0.75, "--router", "two-stage"]}
absent = set()


def moh(*arguments):
    result = subprocess.run([str(BUILD / "moh"), *map(str, arguments), "--threads", "1"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def make_models():
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    randomize(dense, 7)
    dense.save_pretrained(FOLDER / "dense")
    for name, options in ROUTERS.items():
        moh("convert", FOLDER / "dense", FOLDER / f"{name}_moh", *options)
        weights = FOLDER / f"{name}_moh" / "model.safetensors"
        tensors = load_file(weights)
        draw = torch.Generator().manual_seed(5)
        for key in tensors:
            if ".wg" in key:
                tensors[key] = torch.randn(tensors[key].shape, generator=draw) * 0.3
        save_file(tensors, weights, metadata={"format": "pt"})
        moh("convert", "--export", "hf", FOLDER / f"{name}_moh", FOLDER / name)


def load(name, auto=transformers.AutoModelForCausalLM, **options):
    return auto.from_pretrained(FOLDER / name, trust_remote_code=True, **options).eval()


def logits(model, ids=IDS, **options):
    with torch.no_grad():
        return model(ids, **options).logits.float()


def reference_gates(name, x, query, wg, shared, top_k, form):
    """The paper's routers for tokens x [.., C] and queries [.., H, D], in fp64; form "authors": with the factors of their code."""
    gates = torch.zeros(query.shape[:-1], dtype=torch.float64)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in x.shape[:-1])):
        row, token = query[tuple(place)].double(), x[tuple(place)].double()
        if name == "norm":
            scores = row.norm(dim=-1)[shared:]
            gates[tuple(place)][:shared] = 1
            gates[tuple(place)][shared + scores.topk(top_k).indices] = 1
        else:
            kind, among = (wg["wg_0"].double() @ token).softmax(0), (wg["wg"].double() @ token).softmax(0)
            best = among.topk(top_k).indices
            gates[tuple(place)][:shared] = kind[0] * (wg["wg_1"].double() @ token).softmax(0)
            gates[tuple(place)][shared + best] = kind[1] * among[best]
            if form == "authors":
                gates[tuple(place)][:shared] *= 2 * shared
                gates[tuple(place)][shared:] *= 2 * top_k / among[best].sum()
    return gates


def reference(name):
    """The dense model, gates multiplied onto the input of every o_proj by hooks from outside."""
    config = json.loads((FOLDER / name / "config.json").read_text())["moh"]
    tensors = load_file(FOLDER / name / "model.safetensors")
    model = transformers.LlamaForCausalLM.from_pretrained(FOLDER / "dense", attn_implementation="eager").eval()
    for index, layer in enumerate(model.model.layers):
        attention, state = layer.self_attn, {}
        shared, top_k = ((n[index] if isinstance(n, list) else n) for n in (config["shared_heads"], config["top_k"]))
        wg = {key: tensors.get(f"model.layers.{index}.self_attn.{key}.weight") for key in ("wg", "wg_0", "wg_1")}

        def keep(module, inputs, output, state=state, wg=wg, shared=shared, top_k=top_k):
            query = output.unflatten(-1, (8, -1))
            state["gates"] = reference_gates(name, inputs[0], query, wg, shared, top_k, config["gates"])

        def multiply(module, inputs, state=state):
            return ((inputs[0].unflatten(-1, (8, -1)) * state["gates"].unsqueeze(-1)).flatten(-2).to(inputs[0].dtype),)

        attention.q_proj.register_forward_hook(keep)
        attention.o_proj.register_forward_pre_hook(multiply)
    return model


def same(got, expected, what, tolerance=2e-4):
    error = (got - expected).abs().max().item()
    assert error <= tolerance, f"{what}: off by {error:.3g}"


def needs(package):
    """Whether it is there; what is not is named at the end."""
    try:
        __import__(package)
        return True
    except ImportError:
        absent.add(package)
        return False


def check_implementations(name, expected):
    for implementation in ("eager", "sdpa", "flex_attention", "paged|sdpa"):
        model = load(name)
        model.set_attn_implementation(implementation)
        same(logits(model), expected, f"set_attn_implementation({implementation!r})")
        if implementation == "paged|sdpa":
            continue
        model = load(name, attn_implementation=implementation)
        same(logits(model), expected, f"attn_implementation={implementation!r}")
    out = load(name, attn_implementation="eager")(IDS, output_attentions=True, output_hidden_states=True)
    assert len(out.attentions) == 2 and len(out.hidden_states) == 3, "outputs that transformers records"
    same(out.attentions[0].sum(-1), torch.ones(2, 8, 24), "attention weights")


def check_auto_classes(name, expected):
    base, whole = load(name, transformers.AutoModel), load(name)
    assert type(base).__name__ == "MohModel" and type(whole.model) is type(base)
    with torch.no_grad():
        same(whole.lm_head(base(IDS).last_hidden_state), expected, "AutoModel")
    config = transformers.AutoConfig.from_pretrained(FOLDER / name, trust_remote_code=True)
    assert config.moh["router"] in ("norm", "two-stage")
    again = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    again.load_state_dict(whole.state_dict())
    same(logits(again.eval()), expected, "from_config")
    assert base._supports_attention_backend and not any("self_attn" in key for key in base.tp_plan), base.tp_plan


def greedy(model, ids, count, **options):
    settings = dict(max_new_tokens=count, do_sample=False, eos_token_id=-5, pad_token_id=0, **options)
    return model.generate(ids, generation_config=transformers.GenerationConfig(**settings), attention_mask=(ids != 0).long())


def check_generation(name, expected):
    oracle, model, count = reference(name), load(name), 10
    prompt = IDS[:1, :12]
    tokens = prompt
    for _ in range(count):
        tokens = torch.cat([tokens, logits(oracle, tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    for cache in ("dynamic", "static"):
        out = greedy(model, prompt, count, cache_implementation=cache)
        assert torch.equal(out, tokens), f"{cache} cache: {out.tolist()}, expected {tokens.tolist()}"
    padded = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.long), prompt], 1), IDS[1:, :17]])
    out = greedy(model, padded, count)
    assert torch.equal(out[:1, 5:], tokens), f"left padding: {out[0, 5:].tolist()}, expected {tokens[0].tolist()}"
    settings = transformers.GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=-5, pad_token_id=0)
    sizes = transformers.ContinuousBatchingConfig(num_blocks=16, page_size=8, max_batch_tokens=64)
    batch = model.generate_batch(inputs=[prompt[0].tolist(), IDS[1, :17].tolist()], generation_config=settings,
                                 continuous_batching_config=sizes)
    batch = {len(r.prompt_ids): r.generated_tokens for r in batch.values()}
    assert batch[12] == tokens[0, 12:].tolist(), f"continuous batching: {batch[12]}, expected {tokens[0, 12:].tolist()}"
    assert batch[17] == out[1, 17:].tolist(), f"continuous batching: {batch[17]}, generate: {out[1, 17:].tolist()}"


def check_lora(name, expected):
    if not needs("peft"):
        return
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj"] + (["wg", "wg_0", "wg_1"] if name == "two" else [])
    torch.manual_seed(0)
    model = get_peft_model(load(name), LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    model.train()
    first = None
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss
        first = first or loss.item()
        loss.backward()
        optimizer.step()
    assert loss.item() < first - 0.3, f"LoRA does not learn: {first:.3f} to {loss.item():.3f}"
    for label, parameter in model.named_parameters():
        assert "lora_" not in label or parameter.grad.abs().max() > 0, f"no gradient reaches {label}"
    adapted = logits(model.eval())
    assert (adapted - expected).abs().max() > 1e-2
    same(logits(model.merge_and_unload()), adapted, "LoRA after merge_and_unload", 2e-3)


def check_quantizers(name, expected):
    """Weights in 8 bits: logits stay about as near as the dense model's; which heads are chosen depends on them."""
    configs = {}
    if needs("optimum.quanto"):
        configs["quanto"] = transformers.QuantoConfig(weights="int8")
    if needs("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig

        configs["torchao"] = transformers.TorchAoConfig(Int8WeightOnlyConfig())
    if needs("bitsandbytes"):
        configs["bitsandbytes"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    dense = logits(load("dense"))
    for label, config in configs.items():
        moved = (logits(load("dense", quantization_config=config)) - dense).abs().mean().item()
        model = load(name, quantization_config=config)
        kinds = {key.split(".")[-1]: type(module) for key, module in model.named_modules()}
        assert kinds["q_proj"] is not torch.nn.Linear or "torchao" in label, f"{label} quantized nothing"
        assert all(kinds[key].__name__ == "RouterLinear" for key in kinds if key.startswith("wg")), f"{label} quantized a router"
        got = (logits(model) - expected).abs().mean().item()
        assert got <= 4 * moved + 0.02, f"{label}: logits move by {got:.3g} on average, the dense model's by {moved:.3g}"


def check_offload(name, expected):
    if not needs("accelerate"):
        return
    import accelerate

    model = accelerate.cpu_offload(load(name), execution_device="cpu", offload_buffers=False)
    same(logits(model), expected, "accelerate.cpu_offload")
    model = load(name, device_map={"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
                                   "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"},
                 offload_folder=FOLDER / "offload")
    same(logits(model), expected, "device_map with a layer on disk")


def check_threads(name, expected):
    model = load(name)
    requests = [torch.randint(5, 90, (1, 16 + i), generator=torch.Generator().manual_seed(i)) for i in range(12)]
    alone = [logits(model, ids) for ids in requests]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda ids: logits(model, ids), requests * 3))
    for i, got in enumerate(together):
        same(got, alone[i % len(alone)], f"request {i} of 4 threads", 1e-5)


def check_copies(name, expected):
    model = load(name)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    same(logits(twin), expected, "deepcopy")
    twin.save_pretrained(FOLDER / "again")
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModel):
        model = load("again", auto)
        with torch.no_grad():
            hidden = (model if auto is transformers.AutoModel else model.model)(IDS).last_hidden_state
            same(twin.lm_head(hidden), expected, f"save_pretrained, {auto.__name__}")
    moh("inspect", FOLDER / "again")
    shutil.rmtree(FOLDER / "again")


def gradients(model):
    model.zero_grad()
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    return {key: parameter.grad.clone() for key, parameter in model.named_parameters()}


def check_training(name, expected):
    plain = gradients(load(name).train())
    model = load(name).train()
    model.gradient_checkpointing_enable()
    for key, gradient in gradients(model).items():
        same(gradient, plain[key], f"gradient checkpointing, {key}", 1e-5)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            got = logits(load(name))
        assert (got - expected).abs().mean() < 0.1, f"autocast to {dtype}: logits move by {(got - expected).abs().mean():.3g}"
    if needs("accelerate"):
        rows = [{"input_ids": IDS[0].tolist(), "labels": IDS[0].tolist()}] * 4
        args = transformers.TrainingArguments(output_dir=str(FOLDER / "trainer"), max_steps=8, learning_rate=1e-2, report_to=[],
                                              per_device_train_batch_size=2, save_strategy="no", use_cpu=True, bf16=True,
                                              disable_tqdm=True, logging_steps=1)
        trainer = transformers.Trainer(model=load(name), args=args, train_dataset=rows)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses[-1] < losses[0] - 0.5, f"Trainer(bf16=True): losses {losses}"


def check_compile(name, expected):
    model = load(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    same(logits(compiled), expected, "torch.compile")
    eager = gradients(load(name).train())
    torch._dynamo.reset()
    model = load(name).train()
    for key, gradient in gradients(torch.compile(model, backend="aot_eager")).items():
        same(gradient, eager[key.removeprefix("_orig_mod.")], f"torch.compile, gradient of {key}", 1e-4)


# What the operator has a part in; the others run once, without it.
WITH_LIBRARY = [check_implementations, check_generation, check_lora, check_threads]
CHECKS = [check_implementations, check_auto_classes, check_generation, check_lora, check_quantizers, check_offload, check_threads,
          check_copies, check_training, check_compile]


def main():
    make_models()
    failures, seconds = [], {}
    for library in (False, True):
        if library:
            torch.ops.load_library(str(BUILD / "libmoh.so"))
        for name in ROUTERS:
            with torch.no_grad():
                expected = logits(reference(name))
            assert (expected - logits(load("dense"))).abs().max() > 0.5, "gates must matter for this test to mean anything"
            for check in WITH_LIBRARY if library else CHECKS:
                if len(sys.argv) > 2 and check.__name__ not in sys.argv[2:]:
                    continue
                start = time.process_time()
                try:
                    check(name, expected)
                except Exception as error:  # noqa: BLE001
                    if os.environ.get("MOH_TEST_RAISE"):
                        raise
                    failures.append(f"{name}, {'with' if library else 'without'} libmoh.so, {check.__name__}: {error}")
                seconds[check.__name__] = seconds.get(check.__name__, 0) + time.process_time() - start
    print("transformers: CPU seconds", {key: round(value, 1) for key, value in seconds.items()})
    if absent:
        print("not tested, for lack of the package:", ", ".join(sorted(absent)))
    for failure in failures:
        print("FAILED", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        status = main()
    finally:
        shutil.rmtree(FOLDER)
    sys.exit(status)
