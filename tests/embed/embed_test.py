"""examples/embed, a project of its own, is configured, built and run against an installed copy of the library.
Usage: embed_test.py BUILD"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
BUILD = pathlib.Path(sys.argv[1]).resolve()


def run(*command, status=0):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == status, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    run("cmake", "--install", BUILD, "--prefix", folder / "prefix", "--component", "library")
    shutil.copytree(ROOT / "examples" / "embed", folder / "embed")
    run("cmake", "-S", folder / "embed", "-B", folder / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}")
    run("cmake", "--build", folder / "build")
    embed = folder / "build" / "embed"
    linked = re.search(r"libmoh\.so => (\S+)", run("ldd", embed))
    assert linked and linked[1].startswith(str(folder / "prefix")), f"embed uses {linked and linked[1]}"

    out = run(embed)
    shape, on, of, gradient = re.fullmatch(r"y \[(.*)\], (\d+) of (\d+) heads computed, \|dL/dW_g\| (\S+)\n", out).groups()
    assert (shape, int(on), int(of)) == ("1, 512, 256", 512 * 6, 512 * 8) and float(gradient) > 0, out

    (folder / "text.txt").write_text("one two three four. " * 400)
    moh = BUILD / "moh"
    run(moh, "train", "--preset", "llm-tiny", "--data", folder / "text.txt", "--out", folder / "run", "--steps", "2", "--batch", "2",
        "--sequence", "32", "--threads", "1")
    greedy = run(moh, "generate", folder / "run", "--prompt", "one two", "--max-tokens", "32")
    out = run(embed, folder / "run", "one two")
    assert greedy.splitlines()[0] in out and "100 % of the heads" in out, f"embed: {out}\nmoh generate: {greedy}"
    assert "[" in run(embed, folder / "nowhere", status=1)
print("embed: built, run, same text as moh generate")
