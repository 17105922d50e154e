"""Token ids against PyPI's tokenizers and sentencepiece, over more than a megabyte of mixed text with broken UTF-8.

Small tokenizers of every form that the LLaMA families use are trained here by PyPI's tokenizers; those of ../shared are
compared too where they are. tiktoken ranks are checked against byte-pair encoding written anew below."""

import base64
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import unicodedata
import unittest

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import numpy as np

try:
    import sentencepiece
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
except ImportError as error:
    print(f"skipped: {error}; scripts/setup.sh tests installs it")
    sys.exit(77)

try:
    import gguf
except ImportError:
    gguf = None

MOH = sys.argv.pop() if len(sys.argv) > 1 else str(pathlib.Path(__file__).parents[2] / "build" / "moh")
SHARED = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}"
          r"\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

WORDS = "the of naïve café größe señor Über l'été I'm they'LL don't WE'RE 12 3.14159 1,000,000 x_1 Crème".split()
EMOJI = "🙂 👩‍👩‍👧 🇫🇷 👍🏽 ❤️ 🏳️‍🌈".split()
CODE = ["def f(x):\n    return x ** 2  # comment\n", "for (int i = 0; i < n; ++i) {\n\t\ta[i] += b[i];\r\n\t}\n",
        '<div class="a">&nbsp;</div>\n', "SELECT * FROM t WHERE a<>'b';\n", "\t\t\t\n   \n\n\n"]
AWKWARD = ["e\u0301", "A\u030a", "\u1e9b\u0323", "\uac00\u11a8", "مرحبا", "שלום", "नमस्ते", "ไทย", "Ελληνικά", "Привет",
           "\u00a0", "\u2003", "\u3000", "\u2028", "\x85", "\u180e", "\u200b", "\ufeff", "'ſ", "\x00", "\x01", "½", "²",
           "Ⅷ", "٣", "ﬁ", "Å", "ǅ", "_", "—", "“q”", "…", "▁", "▁▁ ▁"]
SPECIAL = ["<s>", "</s>", "<unk>", "<|endoftext|>", "<|eot|>", "<0x41>", "  <|pad|> ", "word", "wordy", "half", "[tag]"]


def mixed_text(size, seed):
    draw = random.Random(seed)
    cjk = [chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(400)] + [chr(c) for c in range(0x3041, 0x3097)]
    cjk += [chr(draw.randrange(0xAC00, 0xD7A4)) for _ in range(60)]
    # Old characters: to libraries that know an older Unicode, the newer ones are not letters and have no normal form.
    category = unicodedata.ucd_3_2_0.category
    assigned = [chr(c) for c in range(0x20, 0x30000) if category(chr(c)) not in ("Cn", "Cs")]
    parts, total = [], 0
    while total < size:
        kind = draw.random()
        if kind < 0.55:
            part = draw.choice(WORDS).encode() + draw.choice([b" ", b" ", b" ", b", ", b".\n", b"  ", b"", b"\n\n"])
        elif kind < 0.68:
            part = "".join(draw.choices(cjk, k=draw.randrange(1, 12))).encode()
        elif kind < 0.73:
            part = draw.choice(EMOJI).encode()
        elif kind < 0.80:
            part = draw.choice(CODE).encode()
        elif kind < 0.89:
            part = draw.choice(AWKWARD).encode() + draw.choice([b"", b" "])
        elif kind < 0.92:
            part = draw.choice(SPECIAL).encode()
        elif kind < 0.94:  # broken
            part = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 6)))
        elif kind < 0.96:
            part = "€🙂é中".encode()[: draw.randrange(1, 9)]
        elif kind < 0.97:
            part = draw.choice(assigned).encode()
        elif kind < 0.98:
            part = draw.choice([b" ", b"a", b"\n", b"-", b"7", b"\t"]) * draw.randrange(1, 200)
        else:
            part = "".join(draw.choices("abcdefghijklmnopqrstuvwxyzABCDE", k=draw.randrange(1, 90))).encode()
        parts.append(part)
        total += len(part)
    return b"".join(parts)


TEXT = mixed_text(1_100_000, seed=5)
READ = TEXT.decode("utf-8", "replace")  # as Python reads it

BYTE_ALPHABET = pre_tokenizers.ByteLevel.alphabet()
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(pre_tokenizer, normalizer=None, special=(), template=None, vocabulary=3000, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=BYTE_ALPHABET, show_progress=False,
                                  special_tokens=list(special))
    tokenizer.train_from_iterator(READ[:300_000].splitlines(keepends=True), trainer)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{template} $A", special_tokens=[(template, tokenizer.token_to_id(template))])
    return tokenizer


def split(pattern, behavior="isolated"):
    return pre_tokenizers.Split(Regex(pattern), behavior)


def split_bytes(pattern, *more):
    return pre_tokenizers.Sequence([*more, split(pattern), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def characters(normalizer, pre_tokenizer, decoder, byte_tokens=True):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=byte_tokens))
    if normalizer:
        tokenizer.normalizer = normalizer
    # Trained on words: SentencePiece's merges do not reach over spaces.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next") if normalizer is None else \
        pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", "</s>"] + (BYTE_TOKENS if byte_tokens else [])
    trainer = trainers.BpeTrainer(vocab_size=2500, limit_alphabet=500, special_tokens=special, show_progress=False)
    words = READ[:300_000].replace(" ", "▁") if normalizer is None else READ[:300_000]
    tokenizer.train_from_iterator(words.splitlines(keepends=True), trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if pre_tokenizer is None:
        state = json.loads(tokenizer.to_str())
        state["pre_tokenizer"] = None
        tokenizer = Tokenizer.from_str(json.dumps(state))
    else:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    return tokenizer


def sentencepiece_decoder(strip):
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))


def forms():
    """A tokenizer of every form, under the name of a family that has it."""
    yield "gpt2", byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), special=["<|endoftext|>"])
    yield "gpt2-prefix", byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    yield "llama3", byte_level(split_bytes(LLAMA3), special=["<s>", "<|eot|>"], template="<s>", ignore_merges=True)
    yield "qwen2", byte_level(split_bytes(QWEN2), normalizers.NFC(), special=["<|endoftext|>"])
    yield "nfkc", byte_level(split_bytes(QWEN2), normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("--", "-")]))
    yield "smollm", byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                        pre_tokenizers.ByteLevel(add_prefix_space=False)]))
    yield "words", byte_level(pre_tokenizers.Sequence([pre_tokenizers.Whitespace(),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    yield "tekken", byte_level(split_bytes(TEKKEN))
    yield "splits", byte_level(split_bytes(r"\w+", split(r"\n+", "merged_with_previous"), split(r"['\-]", "merged_with_next"),
                                           pre_tokenizers.Digits(), split("[ab]", "contiguous"),
                                           pre_tokenizers.Punctuation()))
    llama2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    yield "llama2", characters(llama2, None, sentencepiece_decoder(strip=True))
    yield "no-bytes", characters(llama2, None, sentencepiece_decoder(strip=True), byte_tokens=False)
    for scheme in ("first", "always", "never"):
        yield f"mistral-{scheme}", characters(None, pre_tokenizers.Metaspace("▁", scheme, split=scheme != "first"),
                                              sentencepiece_decoder(strip=scheme != "never"))
    yield "gemma", characters(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"),
                              sentencepiece_decoder(strip=False))


def add_tokens(tokenizer):
    tokenizer.add_special_tokens([AddedToken("<|pad|>", lstrip=True, rstrip=True), "<|eot|>", "</s>"])
    tokenizer.add_tokens([AddedToken("word", single_word=True), AddedToken("[tag]", normalized=False), "Über café",
                          AddedToken("half", normalized=False, rstrip=True)])


def tool(*arguments):
    result = subprocess.run([MOH, "tokenizer", *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def first_difference(ours, theirs):
    count = min(len(ours), len(theirs))
    different = np.nonzero(ours[:count] != theirs[:count])[0]
    at = int(different[0]) if len(different) else count
    return f"{len(ours)} ids, expected {len(theirs)}; at {at}: {ours[at:at + 8]}, expected {theirs[at:at + 8]}"


class TokenizerTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="moh_tokenizer_"))
        self.addCleanup(shutil.rmtree, self.folder)

    def encode(self, text, *flags, folder=None):
        (self.folder / "text").write_bytes(text)
        tool("encode", folder or self.folder, "--file", self.folder / "text", "--out", self.folder / "ids.npy", *flags)
        return np.load(self.folder / "ids.npy").astype(np.int64)

    def decode(self, folder=None):
        """The text of the ids that `encode` left."""
        tool("decode", folder or self.folder, "--file", self.folder / "ids.npy", "--out", self.folder / "back")
        return (self.folder / "back").read_bytes()

    def equal(self, ours, theirs, name):
        theirs = np.array(theirs, dtype=np.int64)
        self.assertTrue(np.array_equal(ours, theirs), f"{name}: {first_difference(ours, theirs)}")

    def compare(self, tokenizer, name, text=TEXT, folder=None):
        read = text.decode("utf-8", "replace")
        for flags in ((), ("--parse-special",)):
            tokenizer.encode_special_tokens = not flags
            theirs = tokenizer.encode(read, add_special_tokens=False).ids
            self.equal(self.encode(text, *flags, folder=folder), theirs, f"{name} {flags}")
            if not flags:
                expected = tokenizer.decode(theirs, skip_special_tokens=True)
                back = self.decode(folder).decode("utf-8", "replace")
                self.assertEqual(len(back), len(expected), name)
                self.assertTrue(back == expected, f"{name}: decoded texts differ")

    def test_every_form_of_tokenizer_json(self):
        for name, tokenizer in forms():
            with self.subTest(name):
                if name != "splits":
                    add_tokens(tokenizer)
                tokenizer.save(str(self.folder / "tokenizer.json"))
                self.compare(tokenizer, name)

    def test_merges_of_old_and_new_files(self):
        tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), vocabulary=600)
        state = json.loads(tokenizer.to_str())
        self.assertIsInstance(state["model"]["merges"][0], list)
        theirs = tokenizer.encode(READ[:50_000]).ids
        state["model"]["merges"] = [" ".join(pair) for pair in state["model"]["merges"]]
        (self.folder / "tokenizer.json").write_text(json.dumps(state))
        self.equal(self.encode(READ[:50_000].encode()), theirs, "merges as strings")

    def test_vocab_and_merges(self):
        for kind, pattern, normalizer in (("GPT2Tokenizer", None, None), ("Qwen2Tokenizer", QWEN2, normalizers.NFC())):
            pre = split_bytes(pattern) if pattern else pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer = byte_level(pre, normalizer)
            tokenizer.model.save(str(self.folder))
            (self.folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
            self.equal(self.encode(TEXT), tokenizer.encode(READ).ids, kind)

    def test_tiktoken_ranks(self):
        tokenizer = byte_level(split_bytes(LLAMA3), vocabulary=2000)
        byte_of = {c: b for b, c in byte_characters().items()}
        tokens = [bytes(byte_of[c] for c in tokenizer.id_to_token(id)) for id in range(tokenizer.get_vocab_size())]
        ranks = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
        (self.folder / "tokenizer.model").write_text(ranks)
        self.equal(self.encode(TEXT), encode_by_ranks(READ, {token: rank for rank, token in enumerate(tokens)}), "ranks")
        self.assertEqual(self.decode().decode(), READ)
        special = self.encode(b"a<|eot_id|>b<|begin_of_text|><|reserved_special_token_247|>", "--parse-special")
        self.assertEqual(special[special >= len(tokens)].tolist(), [len(tokens) + i for i in (9, 0, 255)])

    def test_sentencepiece(self):
        (self.folder / "train.txt").write_text(READ[:200_000].replace("\0", ""))
        tool("train", self.folder, "--file", self.folder / "train.txt", "--vocab-size", 4000)
        self.compare_sentencepiece(self.folder)

    def test_sentencepiece_added_tokens(self):
        """As transformers reads such a folder: its model without rules, the space that begins a text once (or after every
        added token, `legacy`, or never)."""
        (self.folder / "train.txt").write_text(READ[:200_000].replace("\0", ""))
        tool("train", self.folder, "--file", self.folder / "train.txt", "--vocab-size", 2000)
        model = sentencepiece.SentencePieceProcessor(model_file=str(self.folder / "tokenizer.model"))
        size = model.get_piece_size()
        pieces = {model.id_to_piece(id): id for id in range(size)}
        merges = [(piece[:cut], piece[cut:]) for piece in sorted(pieces, key=lambda p: -model.get_score(pieces[p])) for cut in range(1, len(piece))
                  if piece[:cut] in pieces and piece[cut:] in pieces and not model.is_byte(pieces[piece])]
        added = {"<|im_start|>": size, "[tool]": size + 1}
        text = "<|im_start|>one  two [tool] three[tool]four five<|im_start|> \n[tool]  end " + READ[1000:9000].replace("\0", "") + "[tool]x y z é ü"
        for legacy, prefix, scheme in ((None, None, "first"), (True, True, "always"), (False, False, "never")):
            theirs = Tokenizer(models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
            theirs.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=False)
            theirs.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>", "<|im_start|>")])
            theirs.add_tokens([AddedToken("[tool]", normalized=False)])
            flags = dict(lstrip=False, rstrip=False, normalized=False, single_word=False)
            (self.folder / "tokenizer_config.json").write_text(json.dumps({
                "legacy": legacy, "add_prefix_space": prefix,
                "added_tokens_decoder": {str(id): {"content": token, "special": token[0] == "<", **flags} for token, id in added.items()}}))
            self.equal(self.encode(text.encode(), "--parse-special"), theirs.encode(text, add_special_tokens=False).ids, scheme)

    def write_gguf(self, kind, tokens, types, **more):
        writer = gguf.GGUFWriter(self.folder / "model.gguf", "llama")
        writer.add_tokenizer_model(kind)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        for name, value in more.items():
            getattr(writer, f"add_{name}")(value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return self.folder / "model.gguf"

    @unittest.skipIf(gguf is None, "needs gguf")
    def test_gguf_bytes(self):
        names = {"gpt2": "gpt-2", "llama3": "llama-bpe", "qwen2": "qwen2", "smollm": "smollm"}
        for name, tokenizer in forms():
            if name not in names:
                continue
            with self.subTest(name):
                tokenizer.add_special_tokens(["<|im_start|>"])
                tokenizer.add_tokens([AddedToken("[tag]", normalized=False)])
                state = json.loads(tokenizer.to_str())
                special = {token["id"]: 3 if token["special"] else 4 for token in state["added_tokens"]}
                ids = range(tokenizer.get_vocab_size())
                file = self.write_gguf("gpt2", [tokenizer.id_to_token(id) for id in ids], [special.get(id, 1) for id in ids],
                                       tokenizer_pre=names[name], token_merges=[" ".join(pair) for pair in state["model"]["merges"]],
                                       bos_token_id=0)
                self.compare(tokenizer, name, TEXT + b" <|im_start|>x [tag]y", folder=file)

    @unittest.skipIf(gguf is None, "needs gguf")
    def test_gguf_sentencepiece(self):
        (self.folder / "train.txt").write_text(READ[:200_000].replace("\0", ""))
        tool("train", self.folder, "--file", self.folder / "train.txt", "--vocab-size", 4000)
        model = sentencepiece.SentencePieceProcessor(model_file=str(self.folder / "tokenizer.model"))
        (self.folder / "tokenizer.model").unlink()
        ids = range(model.get_piece_size())
        kind = lambda id: 2 if model.is_unknown(id) else 3 if model.is_control(id) else 6 if model.is_byte(id) else 1
        file = self.write_gguf("llama", [model.id_to_piece(id) for id in ids], [kind(id) for id in ids],
                               token_scores=[model.get_score(id) for id in ids], bos_token_id=1, eos_token_id=2)
        text = READ.replace("\0", "")
        self.equal(self.encode(text.encode(), folder=file), model.encode(text), "sentencepiece")
        self.assertEqual(self.decode(file).decode(), model.decode(model.encode(text)))
        self.equal(self.encode(b"<s>a</s>", "--parse-special", folder=file), [1, *model.encode("a"), 2], "special")

    @unittest.skipIf(gguf is None, "needs gguf")
    def test_gguf_of_other_kinds_is_refused_by_name(self):
        for more, words in (({"kind": "t5"}, "tokenizer \"t5\""), ({"kind": "gpt2", "tokenizer_pre": "tekken"}, "pre-tokenizer \"tekken\""),
                            ({"kind": "llama"}, "tokenizer.ggml.scores has 0 entries")):
            file = self.write_gguf(tokens=["a", "b"], types=[1, 1], **more)
            (self.folder / "text").write_bytes(b"a")
            result = subprocess.run([MOH, "tokenizer", "encode", file, "--file", self.folder / "text", "--out", self.folder / "x.npy"],
                                    capture_output=True, text=True)
            self.assertEqual(result.returncode, 1)
            self.assertIn(words, result.stderr)

    def compare_sentencepiece(self, folder):
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        ids = theirs.encode(TEXT)
        self.equal(self.encode(TEXT, folder=folder), ids, str(folder))
        self.assertEqual(self.decode(folder).decode("utf-8", "replace"), theirs.decode(ids))

    def test_shared_tokenizers(self):
        folders = SHARED / "tokenizers"
        if not folders.exists():
            self.skipTest("no ../shared")
        self.compare(Tokenizer.from_file(str(folders / "gpt2" / "tokenizer.json")), "gpt2", folder=folders / "gpt2")
        self.compare_sentencepiece(folders / "llama2")
        lines = (folders / "llama3" / "tokenizer.model").read_text().split("\n")
        ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines if line}
        self.equal(self.encode(TEXT, folder=folders / "llama3"), encode_by_ranks(READ, ranks), "llama3")
        paths = {"stories260K": SHARED / "models" / "stories260K"}
        for case in json.loads((folders / "reference_encodings.json").read_text()):
            for name in ("gpt2", "llama3", "llama2", "stories260K"):
                folder = paths.get(name, folders / name)
                self.equal(self.encode(case["text"].encode(), folder=folder), case[name], f"{name} {case['text']!r}")

    def test_not_slower_than_tokenizers(self):
        """One thread each, the whole program with its start against the call alone."""
        tokenizer = byte_level(split_bytes(LLAMA3))
        tokenizer.save(str(self.folder / "tokenizer.json"))
        text = TEXT * 4
        read = text.decode("utf-8", "replace")
        start = time.process_time()
        ids = tokenizer.encode(read).ids
        theirs = time.process_time() - start
        before = os.times()
        ours = self.encode(text, "--threads", 1)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        self.equal(ours, ids, "four times the text")
        self.assertLess(spent, theirs)


def byte_characters():
    """GPT-2's printable character of each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def encode_by_ranks(text, ranks):
    """tiktoken's rule: a piece that is a token is that token, else the pair of lowest rank is joined, the leftmost first."""
    seen = {}

    def encode_piece(piece):
        if piece in ranks:
            return [ranks[piece]]
        parts = [piece[i:i + 1] for i in range(len(piece))]
        while len(parts) > 1:
            rank, at = min((ranks.get(parts[i] + parts[i + 1], 1 << 30), i) for i in range(len(parts) - 1))
            if rank == 1 << 30:
                break
            parts[at:at + 2] = [parts[at] + parts[at + 1]]
        return [ranks[part] for part in parts]

    ids = []
    for piece, _ in split(LLAMA3).pre_tokenize_str(text):
        if piece not in seen:
            seen[piece] = encode_piece(piece.encode())
        ids += seen[piece]
    return ids


if __name__ == "__main__":
    unittest.main()
