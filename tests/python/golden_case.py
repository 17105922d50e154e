"""Writes what a transformers model computes as a case for golden_tests (kind `llama_model`, tests/golden)."""

import json
import os
import subprocess
import sys

import torch

try:
    import transformers
    from safetensors.torch import save_file
except ImportError as error:
    print(f"skipped: {error}; `scripts/setup.sh tests` installs it")
    sys.exit(77)

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)


def randomize(model, seed):
    """Every parameter gets to matter: unit norms and zero biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(noise * (1.0 if "embed" in name else 1.5 * parameter.shape[1] ** -0.5))
            else:
                parameter.add_(noise * 0.3)


def greedy(model, prompt, count):
    """Tokens, and the smallest distance between the best and the second-best logit on the way."""
    tokens, margin = prompt.clone(), float("inf")
    for _ in range(count):
        best = model(tokens[None]).logits[0, -1].float().topk(2).values
        margin = min(margin, (best[0] - best[1]).item())
        tokens = torch.cat([tokens, model(tokens[None]).logits[0, -1].argmax()[None]])
    return tokens, margin


def tensors_of(model, ids, seed, gradients=True):
    """Inputs, logits, hidden states, loss, gradients, greedy tokens, a left-padded batch."""
    model.eval().float()
    out = model(ids, labels=ids, output_hidden_states=True, use_cache=False)
    tensors = {"in.input_ids": ids, "out.logits": out.logits, "out.loss": out.loss[None], "out.last_hidden": out.hidden_states[-1]}
    for i, hidden in enumerate(out.hidden_states[:-1]):
        tensors[f"out.hidden.{i}"] = hidden
    if gradients:
        out.loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:  # fitted routers that choose by threshold get none
                tensors[f"grad.param.{name}"] = parameter.grad
    with torch.no_grad():
        tensors["cache.logits"], tensors["cache.prefill"] = out.logits, torch.tensor([ids.shape[1] // 3])
        # A token that the input does not have there marks the end of the prompt.
        for start in range(4, ids.shape[1] // 2):
            tokens, margin = greedy(model, ids[0, :start], 12)
            if margin > 1e-3 and tokens[start] != ids[0, start]:
                break
        else:
            raise SystemExit("no prompt with clear greedy tokens found; choose another seed")
        tensors["greedy.tokens"] = tokens
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        padded = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        tensors |= {"padded.input_ids": ids, "padded.attention_mask": mask, "padded.position_ids": positions,
                    "padded.logits": padded}
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def write_case(path, folders, tensors, **config):
    save_file(tensors, path, metadata={"kind": "llama_model", "config": json.dumps(config), "model_folders": json.dumps(folders)})


def run_golden_tests(build, folder):
    """Status of golden_tests over the folder; its output only if something failed."""
    result = subprocess.run([str(build / "golden_tests")], capture_output=True, text=True,
                            env={"OMP_NUM_THREADS": "1", **os.environ, "MOH_GOLDEN_DIR": str(folder)})
    print(result.stdout[-6000:] if result.returncode else result.stdout.splitlines()[-1])
    return result.returncode
