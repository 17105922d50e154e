"""moh eval --task beside the answers of lm-evaluation-harness in lm_eval_golden.json.gz, on a model and records made here."""

import csv
import gzip
import hashlib
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "cli"))

import records  # noqa: E402
from tool import MOH, json_lines, refused, run  # noqa: E402


def digest(arguments):
    texts = [[context, rest] if isinstance(rest, str) else [context] for context, rest in arguments]
    return hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode()).hexdigest()[:16]


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Tasks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="moh_tasks_"))
        records.make_all(cls.folder)
        cls.model, cls.data = cls.folder / "model_True", cls.folder / "data"
        cls.golden = json.loads(gzip.decompress(pathlib.Path(__file__).with_name("lm_eval_golden.json.gz").read_bytes()))

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def evaluate(self, tasks, *options, data=None, model=None):
        samples = self.folder / "samples.jsonl"
        lines = json_lines("eval", model or self.model, "--task", tasks, "--data", data or self.data, "--samples", samples,
                           "--threads", 1, *options)
        return lines, read_lines(samples)

    def test_every_answer_is_the_harness_s(self):
        for name, (tasks, shots, bos) in records.RUNS.items():
            golden = self.golden[name]
            lines, samples = self.evaluate(",".join(tasks), *(["--shots", shots] if shots is not None else []),
                                           model=self.folder / f"model_{bos}")
            said = lines[-1]
            self.assertEqual(set(said["results"]), set(golden["results"]))
            for task, expected in golden["results"].items():
                for key, value in expected.items():
                    if key == "sample_count":
                        continue
                    got = said["results"][task][key]
                    if isinstance(value, float) and got != "N/A":
                        self.assertAlmostEqual(got, value, delta=1e-4 * max(1, abs(value)), msg=f"{name}, {task}, {key}")
                    else:
                        self.assertEqual(got, value, f"{name}, {task}, {key}")
            self.assertEqual(set(said["groups"]), set(golden["groups"]))
            for task, version in golden["versions"].items():
                self.assertEqual(said["versions"][task], version, task)
            for task, count in golden["n-shot"].items():
                self.assertEqual(said["n-shot"][task], count, task)
            by_document = {(sample["task"], sample["doc_id"], sample["filter"]): sample for sample in samples}
            expected = [(task, sample) for task, all_samples in golden["samples"].items() for sample in all_samples]
            self.assertEqual(len(by_document), len(expected))
            for task, sample in expected:
                got = by_document[task, sample["doc_id"], sample["filter"]]
                place = f"{name}, {task}, document {sample['doc_id']}"
                self.assertEqual(digest(got["arguments"]), sample["prompts"], place + ": " + str(got["arguments"])[-300:])
                for answer, right in zip(got["resps"], sample["answers"], strict=True):
                    if isinstance(right, str):
                        self.assertEqual(answer[0], right, place)
                    else:
                        self.assertAlmostEqual(answer[0][0], right[0], delta=1e-4 + 1e-6 * abs(right[0]), msg=place)
                        self.assertEqual(answer[0][1], right[1], place)
                for metric, score in sample["scores"].items():
                    self.assertAlmostEqual(got[metric], score, delta=1e-4 * max(1, abs(score)), msg=f"{place}, {metric}")

    def test_other_forms_of_the_files_say_the_same(self):
        made, other = records.records(records.Writer()), self.folder / "other"

        def write(path, text, packed=False):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())

        def write_csv(path, rows):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)

        def lines(all_records):
            return "".join(json.dumps(record) + "\n" for record in all_records)

        def gold(record):
            return record["choices"]["label"].index(record["answerKey"])

        for task in ("arc_easy", "arc_challenge"):
            write(other / f"arc/{task}.jsonl.gz", lines({"query": "Question: " + r["question"], "choices": r["choices"]["text"],
                                                        "gold": gold(r)} for r in made[task]["test"]), packed=True)
        write(other / "openbookqa/openbook_qa.jsonl", lines({"query": r["question_stem"], "choices": r["choices"]["text"], "gold": gold(r)}
                                                            for r in made["openbookqa"]["test"]))
        write(other / "boolq/boolq.jsonl", lines({"query": f"Passage: {r['passage']}\nQuestion: {r['question']}?", "choices": ["no", "yes"],
                                                  "gold": r["label"]} for r in made["boolq"]["validation"]))
        write(other / "winogrande/winogrande.jsonl", lines(
            {"context_options": [r["sentence"].split("_")[0] + r[option] for option in ("option1", "option2")],
             "continuation": r["sentence"].split("_")[1].strip(), "gold": int(r["answer"]) - 1} for r in made["winogrande"]["validation"]))
        write(other / "lambada/lambada_openai.jsonl", lines({"context": r["text"].rpartition(" ")[0], "continuation": r["text"].rpartition(" ")[2]}
                                                            for r in made["lambada_openai"]["test"][:7]))
        piqa = made["piqa"]["validation"]
        write(other / "piqa/valid.jsonl", lines({k: v for k, v in r.items() if k != "label"} for r in piqa))
        write(other / "piqa/valid-labels.lst", "".join(f"{r['label']}\n" for r in piqa))
        spaced = [r for r in made["logiqa"]["test"]]  # the text form puts a space behind every full stop
        write(other / "logiqa/Test.txt", "\n" + "\n\n".join("\n".join(
            [r["label"], r["context"], r["question"], *(f"{letter}.{option}" for letter, option in zip("ABCD", r["options"]))])
            for r in spaced) + "\n")
        behind = lambda text: text.replace(".", ". ").strip()
        write(self.folder / "spaced/logiqa/test.jsonl", lines({"label": r["label"], "context": behind(r["context"]), "question": behind(r["question"]),
                                                               "options": [behind(option) for option in r["options"]]} for r in spaced))
        truthful = made["truthfulqa_mc1"]["validation"]
        true = lambda r, wanted: [c for c, label in zip(r["mc2_targets"]["choices"], r["mc2_targets"]["labels"]) if label == wanted]
        write_csv(other / "truthfulqa/TruthfulQA.csv", [["Question", "Best Answer", "Correct Answers", "Incorrect Answers"]] + [
            [r["question"], true(r, 1)[0], "; ".join(true(r, 1)), "; ".join(true(r, 0))] for r in truthful])
        write(self.folder / "spaced/truthfulqa/validation.jsonl", lines(
            {"question": r["question"], "mc1_targets": {"choices": [c.strip() for c in true(r, 1)[:1] + true(r, 0)], "labels": [1, 0, 0]},
             "mc2_targets": {"choices": [c.strip() for c in true(r, 1) + true(r, 0)], "labels": [1, 1, 0, 0]}} for r in truthful))
        for split in ("dev", "test"):
            for subject in ("anatomy", "world_religions"):
                rows = [[r["question"], *r["choices"], r["answer"]] for r in made[f"mmlu_{subject}"][split]]
                if subject == "anatomy":
                    rows = [["question", "choice0", "choice1", "choice2", "choice3", "answer"], *rows]
                else:
                    rows = [[*row[:5], "ABCD"[row[5]]] for row in rows]
                write_csv(other / f"mmlu/{split}/{subject}_{split}.csv", rows)
            write_csv(other / f"cmmlu/{split}/arts.csv", [["", "Question", "A", "B", "C", "D", "Answer"]] + [
                [i, *(r[k] for k in ("Question", "A", "B", "C", "D", "Answer"))] for i, r in enumerate(made["cmmlu_arts"][split])])
        for split, name in (("dev", "dev"), ("val", "val")):
            write_csv(other / f"ceval/{name}/law_{name}.csv", [["id", "question", "A", "B", "C", "D", "answer"]] + [
                [i, *(r[k] for k in ("question", "A", "B", "C", "D", "answer"))] for i, r in enumerate(made["ceval-valid_law"][split])])

        brief = lambda samples: [(s["task"], s["doc_id"], s["arguments"], s["resps"], s["target"]) for s in samples]
        same = "arc_easy,arc_challenge,openbookqa,boolq,winogrande,piqa"
        self.assertEqual(brief(self.evaluate(same)[1]), brief(self.evaluate(same, data=other)[1]))
        seven = self.evaluate("lambada_openai", "--limit", 7)[1]
        self.assertEqual(brief(seven), brief(self.evaluate("lambada_openai", data=other)[1]))
        for tasks, shots, first in (("logiqa,truthfulqa_mc1,truthfulqa_mc2", 0, self.folder / "spaced"),
                                    ("mmlu_anatomy,mmlu_world_religions,cmmlu_arts,ceval-valid_law", 2, self.data)):
            self.assertEqual(brief(self.evaluate(tasks, "--shots", shots, data=first)[1]),
                             brief(self.evaluate(tasks, "--shots", shots, data=other)[1]), tasks)
        # The folder of one task, and a file alone.
        for place in (other / "piqa", other / "piqa" / "valid.jsonl"):
            self.assertEqual(brief(self.evaluate("piqa", data=place)[1]), brief(self.evaluate("piqa")[1]))

    def test_lines_tell_scores_numbers_and_heads(self):
        lines, _ = self.evaluate("piqa,gsm8k", "--limit", 3, "--shots", 1)
        piqa, gsm8k, _ = lines
        self.assertLessEqual({"task", "version", "shots", "n", "acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "active_heads",
                              "documents_per_second"}, set(piqa))
        self.assertEqual((piqa["task"], piqa["n"], piqa["shots"], piqa["active_heads"]), ("piqa", 3, 1, 1))
        self.assertLessEqual({"exact_match", "exact_match,strict-match", "exact_match_stderr,flexible-extract"}, set(gsm8k))
        self.assertEqual(self.evaluate("piqa", "--limit", 0.5)[0][0]["n"], 3)
        table = run("eval", self.model, "--task", "piqa", "--data", self.data).stdout
        self.assertIn("acc_norm", table)
        # A MoH model: the share of heads that its tokens used.
        moh = self.folder / "moh"
        run("convert", self.model, moh, "--activated", 0.5)
        for tokens in (16, 512):
            line = self.evaluate("piqa", "--batch-tokens", tokens, model=moh)[0][0]
            self.assertAlmostEqual(line["active_heads"], 0.5)

    def test_batches_do_not_change_the_answers(self):
        first = self.evaluate("hellaswag,mmlu_anatomy,nq_open", "--shots", 1, "--batch-tokens", 512)[1]
        second = self.evaluate("hellaswag,mmlu_anatomy,nq_open", "--shots", 1, "--batch-tokens", 1)[1]
        key = lambda sample: (sample["task"], sample["doc_id"])
        for one, other in zip(sorted(first, key=key), sorted(second, key=key), strict=True):
            for a, b in zip(one["resps"], other["resps"]):
                if isinstance(a[0], str):
                    self.assertEqual(a, b)
                else:
                    self.assertAlmostEqual(a[0][0], b[0][0], delta=1e-4)

    def test_errors_are_one_line(self):
        def told(*words, task="piqa", data=self.data, **options):
            return refused("eval", self.model, "--task", task, "--data", data, *options.get("extra", ()), words=words, alone=False)

        told("piqqa", "did you mean `piqa`", task="piqqa")
        told("unknown task", "known: ", "hellaswag", "mmlu", task="zzzzzzzzzzzz")
        told("no file or folder", data=self.folder / "nowhere")
        told("mmlu_virology", "test split", "mmlu/test/virology_test", task="mmlu_virology")
        told("40 examples", "has 8", extra=("--shots", 40))
        told("--limit", extra=("--limit", -1))
        bad = self.folder / "bad"
        for text, words in (("{\"goal\": 3}\n", ("line 1", "`goal` must be text")), ("[1]\n", ("line 1", "must be an object")),
                            ("{\"goal\"\n", ("line 1",)), ("", ("no record",)),
                            ('{"goal": "a", "sol1": "b", "sol2": "c", "label": 2}\n', ("line 1", "number 2", "of 2 choices")),
                            ('\n{"goal": "a", "sol1": "b", "sol2": "c"}\n', ("line 2", "no field `label`"))):
            (bad / "piqa").mkdir(parents=True, exist_ok=True)
            (bad / "piqa" / "valid.jsonl").write_text(text)
            told(*words, data=bad)
        (bad / "piqa" / "valid.jsonl").write_bytes(b"\xff\xfe")
        told("UTF-8", data=bad)
        (bad / "piqa" / "valid.jsonl").unlink()
        (bad / "piqa" / "valid.jsonl.gz").write_bytes(gzip.compress(b"x" * 1000)[:-20])
        told("gzip", data=bad)
        (bad / "truthfulqa").mkdir()
        (bad / "truthfulqa" / "TruthfulQA.csv").write_text('Question,Best Answer\n"never closed,x\n')
        told("quote", task="truthfulqa_mc1", data=bad)
        (bad / "truthfulqa" / "TruthfulQA.csv").write_text("Question,Best Answer\na,b,c\n")
        told("3 fields", task="truthfulqa_mc1", data=bad)
        told("cannot write", extra=("--samples", self.folder / "nowhere" / "x"))
        refused("eval", self.model, "--task", "piqa", status=2, words="--data")

    def test_ctrl_c_ends_soon_with_what_was_counted(self):
        many, samples = self.folder / "many", self.folder / "interrupted.jsonl"
        (many / "hellaswag").mkdir(parents=True)
        text = (self.data / "hellaswag" / "validation.jsonl").read_text()
        (many / "hellaswag" / "validation.jsonl").write_text(text * 4000)
        process = subprocess.Popen([MOH, "eval", self.model, "--task", "hellaswag", "--data", many, "--json", "--samples", samples,
                                    "--threads", "1", "--batch-tokens", "64"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not (samples.exists() and samples.stat().st_size > 0):
            time.sleep(0.05)
        time.sleep(0.5)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertLess(time.monotonic() - start, 5)  # a second on a machine that does nothing else
        self.assertEqual(process.returncode, 130, err)
        self.assertIn("interrupted", err)
        line = json.loads(out.splitlines()[0])
        self.assertTrue(0 < line["n"] < 24000, line)
        self.assertEqual(len(read_lines(samples)), line["n"])


if __name__ == "__main__":
    unittest.main()
