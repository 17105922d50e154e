"""What lm-evaluation-harness 0.4.13 says about a model and a folder of records, offline, as JSON.

    python3 -m venv /tmp/lm_eval && /tmp/lm_eval/bin/pip install lm-eval==0.4.13 torch==2.13.0 transformers==5.24.0 accelerate
    /tmp/lm_eval/bin/python tests/eval/lm_eval_oracle.py MODEL DATA --task piqa,mmlu_stem --shots 2 --out answers.json

DATA has TASK/SPLIT.jsonl for every task, with Hugging Face's field names; a subject's folder has the task's name too. The
harness's own task files are used, but for where the records come from. Half a gigabyte of packages: no test installs it.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")


def local_task_files(data, folder):
    """The harness's task files again, reading DATA."""
    import lm_eval
    import yaml
    installed = pathlib.Path(lm_eval.__file__).parent / "tasks"

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    wanted = {path.name for path in data.iterdir()}
    for path in installed.rglob("*.yaml"):
        if path.parts[-2] in {"default", "mmlu", "cmmlu", "ceval"} and path.name.startswith("_"):
            group = yaml.load(path.read_text(), Loader)
            if group and "group" in group and group["group"].split("_")[0] in {"mmlu", "cmmlu", "ceval-valid"}:
                (folder / path.name).write_text(path.read_text())
            continue
        try:
            text = path.read_text()
            name = next((line.split(":", 1)[1].strip().strip('"') for line in text.splitlines()
                         if line.split(":")[0].strip('"') == "task" and not line.rstrip().endswith(":")), None)
        except UnicodeDecodeError:
            continue
        if name not in wanted or (path.parent.name == "default" and "mmlu" not in str(path)):
            continue
        splits = {file.stem: str(file) for file in sorted((data / name).glob("*.jsonl"))}
        for split in ("train", "validation", "test", "dev"):  # one that no shot is drawn from still has to be there
            splits.setdefault(split, next(iter(splits.values())))
        (folder / f"task_{name}.yaml").write_text(
            f"include: {path}\ndataset_path: json\ndataset_name: null\ndataset_kwargs:\n  data_files: {json.dumps(splits)}\n"
            f"task: {name}\n" + "".join(line + "\n" for line in text.splitlines() if line.startswith('"tag"')))
        wanted.discard(name)


def ask(model, data, tasks, shots=None, limit=None, batch=1, add_bos=None):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    import torch
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as folder:
        local_task_files(pathlib.Path(data).resolve(), pathlib.Path(folder))
        manager = TaskManager(include_path=folder, include_defaults=False)
        harness = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=batch, add_bos_token=add_bos)
        start = time.monotonic()
        answers = lm_eval.simple_evaluate(model=harness, tasks=tasks, num_fewshot=shots, limit=limit, task_manager=manager,
                                          log_samples=True)
    answers["seconds"] = time.monotonic() - start
    return {key: answers[key] for key in ("results", "versions", "n-shot", "n-samples", "samples", "seconds")} | {
        "groups": answers.get("groups", {})}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--task", required=True)
    parser.add_argument("--shots", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--add-bos", action="store_true", default=None)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    answers = ask(options.model, options.data, options.task.split(","), options.shots, options.limit, options.batch, options.add_bos)
    pathlib.Path(options.out).write_text(json.dumps(answers, default=str))
    print(f"{answers['seconds']:.1f} seconds", json.dumps(answers["results"], indent=1, default=str))


if __name__ == "__main__":
    main()
