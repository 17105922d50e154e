"""Training by several processes: the same as by one, whatever is trained; checkpoints of any number resumed by any other;
what the others do when one is killed, stopped or diverges; torchrun. `processes_test.py MOH`."""

import json
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib

import numpy

MOH = sys.argv[1] if len(sys.argv) > 1 else str(pathlib.Path(__file__).parents[2] / "build" / "moh")
TORCHRUN = pathlib.Path(sys.executable).with_name("torchrun")
base = pathlib.Path(tempfile.mkdtemp(prefix="moh_processes_"))

TINY = ["--preset", "moh-llm-tiny", "--model.num_hidden_layers", "2", "--model.hidden_size", "32",
        "--model.num_attention_heads", "4", "--model.intermediate_size", "48", "--sequence", "16", "--batch", "12",
        "--log-every", "1", "--lr", "3e-3", "--warmup", "2", "--threads", "1"]


def text():
    path = base / "text.txt"
    if not path.exists():
        path.write_text("\n".join("the quick brown fox jumps over the lazy dog"[i % 20 :] for i in range(300)))
    return str(path)


def png(path, pixels):
    """pixels [H, W, 3] uint8."""
    height, width, _ = pixels.shape
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + pixels[y].tobytes() for y in range(height))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) +
                     chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def pictures():
    root = base / "pictures"
    if not root.exists():
        chance = numpy.random.default_rng(1)
        for label, colour in enumerate([(200, 40, 40), (40, 200, 40), (40, 40, 200)]):
            (root / f"class{label}").mkdir(parents=True)
            for i in range(8):
                noise = chance.integers(0, 50, (40, 40, 3))
                png(root / f"class{label}" / f"{i}.png", (numpy.array(colour) + noise).astype(numpy.uint8))
    return str(root)


def start(arguments, processes=1, environment=None):
    command = [MOH, *arguments, *(["--processes", str(processes)] if processes > 1 else [])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(arguments, processes=1, status=0):
    process = start(arguments, processes)
    out, error = process.communicate(timeout=120)
    assert process.returncode == status, f"{arguments}: status {process.returncode}\n{out}\n{error}"
    return out, error


def log(out, key="loss"):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if key in line]
    assert len(set(steps)) == len(steps), f"a step is logged twice in {out}"
    return {line["step"]: line[key] for line in lines if key in line}


def tensors(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        first, end = entry["data_offsets"]
        kind = {"F32": numpy.float32, "I64": numpy.int64, "U8": numpy.uint8}[entry["dtype"]]
        found[name] = numpy.frombuffer(data[8 + length + first : 8 + length + end], kind).reshape(entry["shape"])
    return found


def close(a, b, what, tolerance, keys=("loss", "load_balance_loss", "grad_norm", "active_heads"), exact=True):
    for key in keys:
        ours, theirs = log(a, key), log(b, key)
        assert ours.keys() == theirs.keys() and ours, f"{what}: other steps of {key}"
        for step, value in ours.items():
            # Before the first update nothing but the order of sums differs; after it AdamW follows signs, and a token whose
            # heads score alike may choose another.
            allowed = min(tolerance, 5e-6) if step == 1 and exact else tolerance
            assert abs(value - theirs[step]) <= allowed * max(1.0, abs(value)), \
                f"{what}: {key} of step {step} is {theirs[step]}, one process has {value}"
    assert [json.loads(x).get("tokens") for x in (a / "log.jsonl").read_text().splitlines()] == \
           [json.loads(x).get("tokens") for x in (b / "log.jsonl").read_text().splitlines()], what


def same(a, b, name="model.safetensors"):
    return (a / name).read_bytes() == (b / name).read_bytes()


def check_language():
    options = ["train", *TINY, "--data", text(), "--valid", text(), "--valid-windows", "20", "--steps", "6",
               "--accumulate", "2", "--validate-every", "3", "--ema", "0.9"]
    for n in (1, 2, 3):
        run([*options, "--out", str(base / f"llm{n}")], n)
    run([*options, "--out", str(base / "llm2again")], 2)
    for n in (2, 3):
        close(base / "llm1", base / f"llm{n}", f"LLM, {n} processes", 2e-4)
        close(base / "llm1", base / f"llm{n}", f"LLM, {n} processes", 2e-4, keys=("valid_loss",))
        # AdamW's first steps follow signs: where a gradient is about zero rounding decides, so weights on average.
        for name in ("model.safetensors", "ema.safetensors"):
            one, more = tensors(base / "llm1" / name), tensors(base / f"llm{n}" / name)
            assert one.keys() == more.keys()
            for key in one:
                assert numpy.abs(one[key] - more[key]).mean() < 2e-5, f"{n} processes: {key} of {name}"
    assert log(base / "llm2") == log(base / "llm2again") and same(base / "llm2", base / "llm2again"), "not to the bit"
    run([*options, "--reduce-dtype", "bf16", "--out", str(base / "llm2bf16")], 2)
    close(base / "llm1", base / "llm2bf16", "bf16 gradients", 2e-2, exact=False)
    assert log(base / "llm2bf16") != log(base / "llm2")
    run([*options, "--recompute", "true", "--loss-rows", "7", "--out", str(base / "llm2memory")], 2)
    close(base / "llm1", base / "llm2memory", "recomputation", 2e-4)


def check_tune():
    # Eight heads: with two routed ones the gradient through their norms is rounding alone.
    run(["train", *TINY, "--preset", "llm-tiny", "--model.num_attention_heads", "8", "--data", text(), "--steps", "2", "--out",
         str(base / "teacher")])
    run(["convert", str(base / "teacher"), str(base / "student")])
    options = ["tune", str(base / "student"), "--data", text(), "--distill", str(base / "teacher"), "--distill-weight",
               "0.5", "--distill-hidden", "0.3", "--random-share-min", "0.7", "--steps", "4", "--batch", "6", "--sequence",
               "16", "--log-every", "1", "--threads", "1"]
    for n in (1, 2):
        run([*options, "--out", str(base / f"tune{n}")], n)
    close(base / "tune1", base / "tune2", "distillation, 2 processes", 5e-4)
    close(base / "tune1", base / "tune2", "distillation, 2 processes", 5e-4, keys=("distill_loss",))


def check_pictures():
    vit = ["train", "--preset", "moh-vit-cifar", "--model.embed_dims", "[8,16,16,16]", "--model.depths", "[1,1,1,1]",
           "--model.num_heads", "[2,4,4,4]", "--moh.shared_heads", "[1,1,1,2]", "--moh.top_k", "[1,2,2,1]",
           "--model.drop_path", "0.3", "--workers", "1"]
    dit = ["train", "--preset", "moh-dit-pixel-tiny", "--model.input_size", "8", "--model.depth", "2",
           "--model.hidden_size", "24", "--ema", "0.9"]
    common = ["--data", pictures(), "--valid", pictures(), "--steps", "4", "--batch", "10", "--log-every", "1",
              "--validate-every", "2", "--warmup", "1", "--threads", "1"]
    for name, options in (("vit", vit), ("dit", dit)):
        for n in (1, 2, 3):
            run([*options, *common, "--out", str(base / f"{name}{n}")], n)
        run([*options, *common, "--recompute", "true", "--out", str(base / f"{name}m")], 2)
        for other in ("2", "3", "m"):
            close(base / f"{name}1", base / f"{name}{other}", f"{name}, {other}", 5e-4)
            close(base / f"{name}1", base / f"{name}{other}", f"{name}, {other}", 5e-4, keys=("valid_loss",))
        assert log(base / f"{name}2") == log(base / f"{name}m"), "recomputation changes bits"


def check_checkpoints():
    options = ["train", *TINY, "--data", text(), "--steps", "8", "--checkpoint-every", "4", "--out"]
    for n in (1, 4):
        run([*options, str(base / f"whole{n}")], n)
    first = base / "whole4" / "checkpoints" / "step-4"
    parts = sorted(path.name for path in first.glob("optimizer*"))
    assert parts == [f"optimizer-{i:05d}-of-00004.safetensors" for i in range(4)], parts
    names = json.loads((first / "trainer.json").read_text())["files"]
    assert all((first / name).stat().st_size == size for name, size in names.items()) and set(parts) < set(names)
    for n in (1, 2, 3, 4, 8):
        out = base / f"resumed{n}"
        shutil.copytree(base / "whole4", out)
        shutil.rmtree(out / "checkpoints" / "step-8")
        run(["train", "--resume", "--threads", "1", "--out", str(out)], n)
        close(base / "whole1", out, f"saved by 4, resumed by {n}", 2e-4)
        if n == 4:
            assert same(base / "whole4", out) and log(base / "whole4") == log(out), "not to the bit"
    # One process's checkpoint, resumed by two.
    out = base / "resumed12"
    shutil.copytree(base / "whole1", out)
    shutil.rmtree(out / "checkpoints" / "step-8")
    run(["train", "--resume", "--threads", "1", "--out", str(out)], 2)
    close(base / "whole1", out, "saved by 1, resumed by 2", 2e-4)
    # What is not whole is passed over, and said.
    out = base / "torn"
    shutil.copytree(base / "whole4", out)
    (out / "checkpoints" / "step-8" / parts[2]).unlink()
    said, _ = run(["train", "--resume", "--threads", "1", "--out", str(out)], 2)
    assert parts[2] in said and "step-4" in said, said
    close(base / "whole1", out, "resumed from the checkpoint before", 2e-4)


def check_data():
    """Documents to tokens, a mix of two sources with their own validation, attention that stops at documents."""
    lines = text_lines = pathlib.Path(text()).read_text().splitlines()
    (base / "fox.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (base / "numbers.jsonl").write_text("".join(json.dumps({"body": f"{i} {i * i} {i * i * i}"}) + "\n" for i in range(400)))
    run(["data", "tokenize", str(base / "fox.jsonl"), "--out", str(base / "fox")])
    run(["data", "tokenize", str(base / "numbers.jsonl"), "--field", "body", "--out", str(base / "numbers"), "--workers", "2"])
    assert (base / "fox" / "ids.bin").stat().st_size == 2 * sum(len(line) for line in text_lines)
    (base / "mix.toml").write_text('[[source]]\ndata = "fox"\nweight = 3\nvalid = "fox"\n'
                                   '[[source]]\nname = "squares"\ndata = "numbers"\nweight = 1\nvalid = "numbers"\n')
    options = ["train", *TINY, "--data", str(base / "mix.toml"), "--valid-windows", "10", "--documents", "true", "--steps", "4"]
    for n in (1, 2):
        run([*options, "--out", str(base / f"mix{n}")], n)
    for key in ("loss", "valid_loss", "valid_loss_fox", "valid_loss_squares"):
        close(base / "mix1", base / "mix2", "a mix of sources", 2e-4, keys=(key,))
    run([*options[:-4], "--steps", "4", "--out", str(base / "across")])
    assert log(base / "across") != log(base / "mix1"), "attention across documents"
    _, error = run(["train", *TINY, "--data", text(), "--documents", "true", "--out", str(base / "none")], status=1)
    assert "moh data tokenize" in error, error
    (base / "bad.toml").write_text('[[source]]\ndata = "fox"\nweigth = 3\n')
    _, error = run(["train", *TINY, "--data", str(base / "bad.toml"), "--out", str(base / "none")], status=1)
    assert "weigth" in error and "weight" in error, error
    out, _ = run(["inspect", "moh-llm-s", "--processes", "8", "--json"])
    memory = json.loads(out)["training_memory"]
    assert memory["moments"] * 4 == memory["weights"] and memory["all"] > memory["weights"], memory


def ranks_of(parent):
    found = {}
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) != parent:
                continue
            environment = (status.parent / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        for entry in environment:
            if entry.startswith(b"RANK="):
                found[int(entry[5:])] = int(status.parent.name)
    return found


def wait_for(condition, what, seconds=60):
    until = time.time() + seconds
    while not condition():
        assert time.time() < until, f"waited in vain: {what}"
        time.sleep(0.05)


def endless(out, processes, extra=()):
    process = start(["train", *TINY, "--data", text(), "--steps", "1000000", "--checkpoint-every", "20", *extra, "--out",
                     str(out)], processes)
    wait_for(lambda: list((out / "checkpoints").glob("step-*")), "a first checkpoint")
    return process, ranks_of(process.pid)


def check_ends():
    # A process that is killed: the others say which, soon, in one line.
    process, ranks = endless(base / "killed", 3)
    assert sorted(ranks) == [0, 1, 2], ranks
    began = time.time()
    subprocess.run(["kill", "-9", str(ranks[2])], check=True)
    _, error = process.communicate(timeout=30)
    assert process.returncode not in (0, 130) and time.time() - began < 20, (process.returncode, error)
    assert error.count("moh: error:") == 1 and "process 2 of 3 is missing" in error, error
    assert not ranks_of(process.pid)
    run(["train", "--resume", "--threads", "1", "--out", str(base / "killed"), "--steps",
         str(max(int(p.name[5:]) for p in (base / "killed" / "checkpoints").glob("step-*")) + 2)], 2)

    # One that hangs: named after the time-out.
    process, ranks = endless(base / "hung", 2, ["--collective-timeout", "3"])
    subprocess.run(["kill", "-STOP", str(ranks[1])], check=True)
    began = time.time()
    _, error = process.communicate(timeout=40)
    assert process.returncode not in (0, 130), process.returncode
    assert error.count("moh: error:") == 1 and "process 1 of 2 is missing" in error, error
    assert time.time() - began < 30

    # SIGTERM to any process, or to the one that started them: all save and end.
    for victim in (1, None):
        out = base / f"term{victim}"
        process, ranks = endless(out, 2)
        began = time.time()
        if victim is None:
            process.terminate()
        else:
            subprocess.run(["kill", "-TERM", str(ranks[victim])], check=True)
        said, error = process.communicate(timeout=30)
        assert process.returncode == 130 and time.time() - began < 20, (process.returncode, said, error)
        assert "interrupted; saved" in said, said
        last, saved = max(log(out)), max(int(p.name[5:]) for p in (out / "checkpoints").glob("step-*"))
        assert last == saved, (last, saved)

    # Divergence and wrong use: one line.
    _, error = run(["train", *TINY, "--data", text(), "--steps", "30", "--lr", "1e30", "--clip", "0", "--out",
                    str(base / "diverged")], 3, status=1)
    assert error.count("moh: error:") == 1 and "not finite" in error, error
    _, error = run(["train", *TINY, "--data", text(), "--batch", "2", "--steps", "2", "--out", str(base / "few")], 3, status=1)
    assert error.count("moh: error:") == 1 and "too few for 3 processes" in error, error
    _, error = run(["train", *TINY, "--data", str(base / "nothing"), "--out", str(base / "missing")], 2, status=1)
    assert error.count("moh: error:") == 1 and "does not exist" in error, error


def check_torchrun():
    """One process is killed at its fourth checkpoint; torchrun starts all again, and the end is the same to the bit."""
    options = ["train", *TINY, "--data", text(), "--steps", "60", "--checkpoint-every", "5", "--out"]
    run([*options, str(base / "undisturbed")], 2)
    out = base / "elastic"
    errors = base / "errors"
    command = [str(TORCHRUN), "--no-python", "--nproc-per-node", "2", "--max-restarts", "2",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--log-dir", str(errors), MOH, *options, str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (out / "checkpoints" / "step-20").exists() or (out / "checkpoints" / "step-25").exists(), "step 20")
    ranks = ranks_of(process.pid)
    subprocess.run(["kill", "-9", str(ranks[1])], check=True)
    said, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "resumed from" in said, said
    assert log(out) == log(base / "undisturbed") and same(out, base / "undisturbed"), "another end"
    # An error of ours reaches torchrun's own report.
    process = subprocess.run([*command[:-len(options) - 2], "--max-restarts", "0", MOH, "train", *TINY, "--data",
                              str(base / "nothing"), "--out", str(base / "never")], capture_output=True, text=True, timeout=120)
    assert process.returncode != 0
    said = [line for line in process.stderr.splitlines() if line.startswith("moh: error:")]
    assert len(said) == 1 and "does not exist" in said[0], process.stderr
    written = [json.loads(path.read_text()) for path in errors.rglob("error.json")]
    assert any("does not exist" in entry["message"]["message"] and
               entry["message"]["extraInfo"]["timestamp"].isdigit() for entry in written), written


def main():
    only = sys.argv[2:]
    checks = {"language": check_language, "tune": check_tune, "pictures": check_pictures,
              "data": check_data, "checkpoints": check_checkpoints, "ends": check_ends, "torchrun": check_torchrun}
    try:
        for name, check in checks.items():
            if only and name not in only:
                continue
            if name == "torchrun" and not TORCHRUN.exists():
                print("skipped: no torchrun")
                continue
            began = time.time()
            check()
            print(f"{name}: {time.time() - began:.1f} s")
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
