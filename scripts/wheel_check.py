#!/usr/bin/env python3
"""Builds the wheel beside the torch of .venv, installs it in a fresh environment beside another torch and without a compiler, and runs
the package's tests there.

    scripts/wheel_check.py torch==2.14.1        # what pip is asked for; gigabytes, where an index has CUDA builds alone

Not a part of `make test`: it fetches a torch. An environment that has one already is taken with --venv FOLDER."""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*command, **environment):
    done = subprocess.run([str(part) for part in command], env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torch", nargs="?", help="of the fresh environment, for pip")
    parser.add_argument("--venv", help="an environment to use instead of a fresh one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        build_python = ROOT / ".venv" / "bin" / "python"
        run(build_python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
        wheel, = folder.glob("*.whl")
        size = wheel.stat().st_size / 1e6
        names = zipfile.ZipFile(wheel).namelist()
        print(f"{wheel.name}: {size:.1f} MB, {len(names)} files, built beside torch {run(build_python, '-c', 'import torch; print(torch.__version__)')}")
        assert size < 20 and "moh/_moh.so" in names and "moh/py.typed" in names and not any(name.startswith("torch/") for name in names)

        environment = pathlib.Path(options.venv or folder / "venv")
        if not options.venv:
            run(sys.executable, "-m", "venv", environment)
            run(environment / "bin" / "python", "-m", "pip", "install", "-q", options.torch, "numpy")
        python = environment / "bin" / "python"
        version = "import torch; print(torch.__version__)"
        before = run(python, "-c", version)
        no_compiler = {"PATH": "/nowhere", "CC": "/bin/false", "CXX": "/bin/false"}
        # With its dependencies: pip finds torch there and leaves it.
        said = run(python, "-m", "pip", "install", "--force-reinstall", "--no-deps", wheel, **no_compiler)
        said += run(python, "-m", "pip", "install", wheel, **no_compiler)
        assert "torch" not in said.replace("torch>=2.10", "").lower().split("successfully installed")[-1] and run(python, "-c", version) == before, said
        print(f"installed beside torch {before}, which stayed; moh.available():")
        print(run(python, "-c", "import moh\nfor part, reason in moh.available().items(): print(f'  {part}: {reason or \"yes\"}')", PATH="/nowhere"))
        print(run(python, ROOT / "tests" / "python" / "package_test.py", MOH_INSTALLED="1", OMP_NUM_THREADS="1"))
        run(python, "-m", "pip", "uninstall", "-q", "-y", "moh-attention")


if __name__ == "__main__":
    main()
