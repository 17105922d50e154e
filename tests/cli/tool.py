"""The tool as the tests here call it. Their last argument is its path; without one it is build/moh."""

import json
import pathlib
import subprocess
import sys

MOH = sys.argv.pop() if len(sys.argv) > 1 else str(pathlib.Path(__file__).parents[2] / "build" / "moh")


def call(*arguments, **options):
    return subprocess.run([MOH, *map(str, arguments)], capture_output=True, text=True, **options)


def run(*arguments, status=0, **options):
    done = call(*arguments, **options)
    assert done.returncode == status, f"{arguments}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def json_lines(*arguments):
    return [json.loads(line) for line in run(*arguments, "--json").stdout.splitlines()]


def refused(*arguments, words=(), status=1, alone=True, **options):
    """Ends with one line of error with these words in it, which is returned; `alone`: nothing else stands before it."""
    told = run(*arguments, status=status, **options).stderr
    lines = told.splitlines()
    assert told.endswith("\n") and lines[-1].startswith("moh: error: "), told
    assert sum(line.startswith("moh: error") for line in lines) == 1 and (not alone or len(lines) == 1), told
    assert all(str(word) in lines[-1] for word in ([words] if isinstance(words, str) else words)), told
    return lines[-1]


# A language model that trains in a second: WORDS in a file, the flags that make it, and a dense one made of them.
WORDS = "the cat saw a red ball and ran to the big old tree where it hid all day".split()
SMALL = ("--preset", "moh-llm-tiny", "--model.num_hidden_layers", 2, "--model.hidden_size", 32, "--model.num_attention_heads", 4,
         "--model.intermediate_size", 64, "--batch", 4, "--sequence", 32)


def small_text(folder):
    text = folder / "text.txt"
    text.write_text("\n".join(" ".join(WORDS[i % 7:] + WORDS[: i % 11]) for i in range(400)))
    return text


def train_small(folder, steps=20):
    """The text, the folder of the model and the lines of its log."""
    text = small_text(folder)
    log = json_lines("train", *SMALL, "--preset", "llm-tiny", "--data", text, "--valid", text, "--valid-windows", 4, "--out",
                     folder / "dense", "--steps", steps, "--lr", "1e-2", "--warmup", 10)
    return text, folder / "dense", log
