#!/usr/bin/env python3
"""Speed of moh's tokenizers beside PyPI's tokenizers, on one thread each.

    .venv/bin/python scripts/tokenizer_speed.py --text FILE FOLDER...

A folder has a tokenizer.json, tiktoken ranks or a SentencePiece BPE model; of the latter two the same tokenizer is built for
PyPI's library. The ids must be equal. moh's time is that of `moh tokenizer encode --json` for the encoding alone, with
nothing cached from before. The rival runs in four forms (the text whole, in pieces by encode, encode_batch and
encode_batch_fast; pieces are whole lines of about 16 KB) in one process after a first run; its fastest form counts.
Rounds alternate; medians.
"""

import os

os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import argparse  # noqa: E402
import base64  # noqa: E402
import json  # noqa: E402
import pathlib  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402
import tokenizers  # noqa: E402
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")


def merges_of(ids):
    """Every way to make a token of two others, in order of the ids: what both libraries' file formats leave out."""
    merges = []
    for token, rank in ids.items():
        cuts = [(ids[token[:i]], ids[token[i:]], token[:i], token[i:])
                for i in range(1, len(token)) if token[:i] in ids and token[i:] in ids]
        merges += [(rank, cut) for cut in sorted(cuts)]
    return [cut[2:] for _, cut in sorted(merges, key=lambda merge: merge[0])]


def of_ranks(path):
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = {byte: chr(byte) for byte in printable}
    shown |= {byte: chr(256 + i) for i, byte in enumerate(byte for byte in range(256) if byte not in printable)}
    ids = {}
    for line in path.read_text().splitlines():
        token, rank = line.split()
        ids["".join(shown[byte] for byte in base64.b64decode(token))] = int(rank)
    tokenizer = Tokenizer(models.BPE(ids, merges_of(ids), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return tokenizer


def of_sentencepiece(path):
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    # Scores fall as ids rise: the order of ids is the order of merges.
    words = {piece: i for piece, i in pieces.items() if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))}
    tokenizer = Tokenizer(models.BPE(pieces, merges_of(words), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def rival_of(folder):
    if (folder / "tokenizer.json").exists():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    path = folder / "tokenizer.model"
    first = path.read_bytes()[:200].split(b"\n")[0]
    return of_ranks(path) if first.endswith(b" 0") else of_sentencepiece(path)


def pieces_of(text, size=16384):
    pieces, begin = [], 0
    while begin < len(text):
        end = text.find("\n", begin + size) + 1 or len(text)
        pieces.append(text[begin:end])
        begin = end
    return pieces


def seconds(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def compare(folder, text, moh, rounds):
    rival = rival_of(folder)
    rival.encode_special_tokens = True
    read, pieces = text.decode("utf-8", "replace"), pieces_of(text.decode("utf-8", "replace"))
    forms = {
        "whole": lambda: rival.encode(read, add_special_tokens=False),
        "pieces": lambda: [rival.encode(piece, add_special_tokens=False) for piece in pieces],
        "batch": lambda: rival.encode_batch(pieces, add_special_tokens=False),
        "batch_fast": lambda: rival.encode_batch_fast(pieces, add_special_tokens=False),
    }
    with tempfile.TemporaryDirectory() as place:
        file, out = pathlib.Path(place, "text"), pathlib.Path(place, "ids.npy")
        file.write_bytes(text)

        def ours():
            command = [moh, "tokenizer", "encode", folder, "--file", file, "--out", out, "--threads", "1", "--json"]
            return json.loads(subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout)["seconds"]

        times = {name: [] for name in forms}
        mine = []
        for call in forms.values():
            call()
        for _ in range(rounds):
            mine.append(ours())
            for name, call in forms.items():
                times[name].append(seconds(call))
        same = np.array_equal(np.load(out), np.array(forms["whole"]().ids))
    name, theirs = min(((name, statistics.median(values)) for name, values in times.items()), key=lambda item: item[1])
    best, size = statistics.median(mine), len(text) / 1e6
    print(f"{folder.name:12} moh {size / best:6.2f} MB/s   tokenizers {size / theirs:6.2f} MB/s ({name})   "
          f"time ratio {best / theirs:.2f}   ids {'equal' if same else 'DIFFER'}", flush=True)
    return same


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    parser.add_argument("--text", required=True, type=pathlib.Path)
    parser.add_argument("--moh", default=ROOT / "build" / "moh", type=pathlib.Path)
    parser.add_argument("--rounds", default=5, type=int)
    options = parser.parse_args()
    text = options.text.read_bytes()
    print(f"{options.text}: {len(text) / 1e6:.2f} MB; tokenizers {tokenizers.__version__}; medians of {options.rounds}")
    results = [compare(folder, text, options.moh, options.rounds) for folder in options.folders]
    raise SystemExit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
