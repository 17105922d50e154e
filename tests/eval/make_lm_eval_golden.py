"""Writes lm_eval_golden.json.gz: what lm-evaluation-harness 0.4.13 says about the model and the records of records.py.

Run it with the Python that lm_eval_oracle.py names; it takes a minute or two.
"""

import gzip
import hashlib
import json
import os
import pathlib
import sys
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"
sys.dont_write_bytecode = True

import lm_eval_oracle  # noqa: E402
import records  # noqa: E402


def digest(arguments):
    """Prompts are long; whether they are the same is enough."""
    texts = [[context, rest] if isinstance(rest, str) else [context] for context, rest in arguments]
    return hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode()).hexdigest()[:16]


def brief(sample):
    answers = [answer[0] if isinstance(answer[0], str) else [float(answer[0][0]), bool(answer[0][1])] for answer in sample["resps"]]
    scores = {name: float(sample[name]) for name in sample["metrics"]}
    return {"doc_id": sample["doc_id"], "filter": sample["filter"], "prompts": digest(sample["arguments"]), "answers": answers,
            "scores": scores}


def main():
    golden = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        records.make_all(folder)
        for name, (tasks, shots, bos) in records.RUNS.items():
            said = lm_eval_oracle.ask(folder / f"model_{bos}", folder / "data", tasks, shots)
            golden[name] = {key: said[key] for key in ("results", "groups", "versions", "n-shot")}
            golden[name]["samples"] = {task: [brief(sample) for sample in samples] for task, samples in said["samples"].items()}
    text = json.dumps(golden, default=float, sort_keys=True)
    path = pathlib.Path(__file__).with_name("lm_eval_golden.json.gz")
    with open(path, "wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
        file.write(text.encode())
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
