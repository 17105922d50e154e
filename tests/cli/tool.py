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
