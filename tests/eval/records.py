"""A model, a tokenizer and records of every benchmark, made from nothing: the same bits each time, for golden answers."""

import json
import pathlib
import random

import numpy

WORDS = ("the cat dog bird river stone light water green house walks sleeps under above quickly never because seven "
         "twelve answer Question passage café naïve 你好 问题 答案 Ωmega ß İstanbul 🙂").split()
MERGES = ("Ġ t|h e|i n|Ġ a|r e|Ġt he|o n|Ġ s|e r|a t|Ġ w|o u|Ġ c|e s|n d|Ġ b|i s|Ġ the|Q u|u es|t i|A n|s w|sw er|An swer|"
          "Ġ A|Ġ B|Ġ C|Ġ D|: Ċ|Ċ Ċ|Ġ n|o r|Ġ 1|Ġ y|e n|l e").split("|")
STEM = ("abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science college_mathematics "
        "college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics "
        "high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics "
        "high_school_physics high_school_statistics machine_learning").split()


def byte_letters():
    """GPT-2's letters for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(plain)))
    return letters


def write_tokenizer(folder, bos):
    vocabulary = {name: i for i, name in enumerate(["<s>", "</s>", "<|im_end|>", *(byte_letters()[b] for b in range(256))])}
    merges = []
    for merge in MERGES:
        left, right = merge.split(" ")
        if left in vocabulary and right in vocabulary and left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append([left, right])
    special = [{"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for i, name in enumerate(["<s>", "</s>", "<|im_end|>"])]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    begin = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                      {"Sequence": {"id": "A", "type_id": 0}}],
             "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
             "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": level, "post_processor": begin if bos else level, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": merges}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "clean_up_tokenization_spaces": False}))
    return len(vocabulary)


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensor.tobytes() for tensor in tensors.values()))


def write_model(folder, bos=True, context=448):
    """A random LLaMA whose next tokens are far from equally likely."""
    folder.mkdir(parents=True)
    vocabulary = write_tokenizer(folder, bos)
    hidden, inner, layers, heads, kv_heads = 32, 64, 2, 4, 2
    draw = numpy.random.RandomState(20).standard_normal
    matrix = lambda rows, columns: (draw((rows, columns)) * 2 / columns ** 0.5).astype(numpy.float32)
    tensors = {"model.embed_tokens.weight": matrix(vocabulary, hidden), "lm_head.weight": matrix(vocabulary, hidden),
               "model.norm.weight": numpy.ones(hidden, numpy.float32)}
    for layer in range(layers):
        name = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{name}{norm}.weight"] = numpy.ones(hidden, numpy.float32)
        for part, rows, columns in (("self_attn.q", hidden, hidden), ("self_attn.k", hidden * kv_heads // heads, hidden),
                                    ("self_attn.v", hidden * kv_heads // heads, hidden), ("self_attn.o", hidden, hidden),
                                    ("mlp.gate", inner, hidden), ("mlp.up", inner, hidden), ("mlp.down", hidden, inner)):
            tensors[f"{name}{part}_proj.weight"] = matrix(rows, columns)
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": context, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float32"}))


class Writer:
    def __init__(self):
        self.random = random.Random(5)

    def words(self, least, most):
        return " ".join(self.random.choice(WORDS) for _ in range(self.random.randint(least, most)))

    def sentence(self, least=4, most=10):
        return self.words(least, most).capitalize() + self.random.choice([".", "?", "!", "", " "])

    def pick(self, count):
        return self.random.randrange(count)


def records(write):
    """{task: {split: [record, ...]}} with Hugging Face's field names."""
    some = lambda count, make: [make() for _ in range(count)]
    pick, words, sentence = write.pick, write.words, write.sentence

    def key_choices(count, labels="ABCDE"):
        return {"choices": {"text": [words(1, 5) for _ in range(count)], "label": list(labels[:count])},
                "answerKey": labels[pick(count)]}

    def hellaswag():
        return {"ind": pick(1000), "activity_label": words(1, 3), "ctx_a": sentence() + write.random.choice(["", " [header] x"]),
                "ctx_b": write.random.choice(["", "the MAN Bob", "ßa", "then [step] he  goes"]), "split": "val",
                "endings": [write.random.choice(["", " "]) + words(2, 6) + write.random.choice(["", " [title] More", "  end [substeps] ok ", "."])
                            for _ in range(4)], "label": str(pick(4))}

    def truthfulqa():
        choices, more = [sentence() for _ in range(3)], [sentence() for _ in range(4)]
        return {"question": sentence(), "mc1_targets": {"choices": choices, "labels": [1, 0, 0]},
                "mc2_targets": {"choices": more, "labels": [1, 1, 0, 0]}}

    def gsm8k():
        total = pick(5000)
        return {"question": sentence(), "answer": f"{sentence()}\nSo <<1+1=2>> it is {total}.\n#### {total:,}"}

    def lettered(names, answer):
        return lambda: {names[0]: " " * pick(2) + sentence(), **{name: words(1, 3) for name in "ABCD"}, names[1]: answer()}

    truthful = some(5, truthfulqa)
    both = lambda make, evaluated="validation", count=6: {"train": some(8, make), evaluated: some(count, make)}
    duplicated = some(2, lambda: {"question": words(3, 6), "answer": [words(1, 2), "The " + words(1, 2)]})
    made = {
        "arc_easy": both(lambda: {"id": words(1, 1), "question": sentence(), **key_choices(4)}, "test"),
        "arc_challenge": both(lambda: {"id": words(1, 1), "question": sentence(), **key_choices(3 + pick(3), "12345")}, "test"),
        "openbookqa": both(lambda: {"question_stem": sentence(), **key_choices(4)}, "test"),
        "boolq": both(lambda: {"question": words(3, 6), "passage": sentence(10, 200), "label": pick(2)}),
        "hellaswag": both(hellaswag),
        "piqa": both(lambda: {"goal": sentence(), "sol1": sentence(), "sol2": sentence(), "label": pick(2)}),
        "sciq": both(lambda: {"question": sentence(), "distractor1": words(1, 2), "distractor2": words(1, 2), "distractor3": words(1, 2),
                              "correct_answer": words(1, 2), "support": write.random.choice(["", "  ", "\n "]) + sentence()}, "test"),
        "winogrande": both(lambda: {"sentence": f"{words(2, 5)} _ {words(2, 5)}.", "option1": words(1, 1), "option2": words(1, 2),
                                    "answer": str(1 + pick(2))}),
        "lambada_openai": {"test": [{"text": words(6, 20)} for _ in range(7)] + [{"text": "alone"}]},
        "logiqa": both(lambda: {"label": "abcd"[pick(4)], "context": sentence(10, 30), "question": sentence(),
                                "options": [sentence() for _ in range(4)]}, "test"),
        "truthfulqa_mc1": {"validation": truthful},
        "truthfulqa_mc2": {"validation": truthful},
        "gsm8k": both(gsm8k, "test", 4),
        "nq_open": {"train": some(3, lambda: {"question": words(3, 6), "answer": [words(1, 2)]}) + duplicated * 2,
                    "validation": duplicated + some(3, lambda: {"question": words(3, 6), "answer": [words(1, 2), words(1, 3)]})},
        "cmmlu_arts": {"dev": some(5, lettered(("Question", "Answer"), lambda: "ABCD"[pick(4)])),
                       "test": some(4, lettered(("Question", "Answer"), lambda: "ABCD"[pick(4)]))},
        "ceval-valid_law": {"dev": some(5, lettered(("question", "answer"), lambda: "ABCD"[pick(4)])),
                            "val": some(4, lettered(("question", "answer"), lambda: "ABCD"[pick(4)]))},
    }
    mmlu = lambda: {"question": " " * pick(2) + sentence(), "choices": [words(1, 3) for _ in range(4)], "answer": pick(4)}
    for subject in STEM + ["world_religions"]:
        made[f"mmlu_{subject}"] = {"dev": some(3, mmlu), "test": some(1 + pick(2) + (subject == "anatomy"), mmlu)}
    return made


def write_records(folder):
    for task, splits in records(Writer()).items():
        (folder / task).mkdir(parents=True)
        for split, lines in splits.items():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / task / f"{split}.jsonl").write_text(text, encoding="utf-8")


# What the golden file answers: name, tasks, shots (None: the tasks' own), whether the tokenizer adds BOS.
TASKS = ("arc_easy,arc_challenge,openbookqa,boolq,hellaswag,piqa,sciq,winogrande,lambada_openai,logiqa,truthfulqa_mc1,"
         "truthfulqa_mc2,gsm8k,nq_open,mmlu_stem,mmlu_world_religions,cmmlu_arts,ceval-valid_law").split(",")
RUNS = {"own shots": (TASKS, None, True), "2 shots": (TASKS, 2, False)}


def make_all(folder):
    folder = pathlib.Path(folder)
    write_records(folder / "data")
    for bos in (True, False):
        write_model(folder / f"model_{bos}", bos)
