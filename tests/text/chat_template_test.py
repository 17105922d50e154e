"""Chat templates beside Python's jinja2, set up as transformers does: equal byte for byte, and an error where it raises.

The templates beside use what those of Llama 3, Qwen 2.5 and 3, Gemma, Mistral, SmolLM 2 and Phi use; constructs.txt
holds single constructs. Usage: chat_template_test.py PROBE"""

import json
import os
import pathlib
import subprocess
import sys
import unittest
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
try:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

warnings.simplefilter("ignore")  # of unknown escapes in a template's strings
PROBE = sys.argv.pop() if len(sys.argv) > 1 else None
FOLDER = pathlib.Path(__file__).parent


class Generation(jinja2.ext.Extension):
    """{% generation %}, which transformers adds, without its bookkeeping."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller):
        return caller()


class Refused(jinja2.exceptions.TemplateError):
    pass


def environment():
    def raise_exception(message):
        raise Refused(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    import datetime
    made.globals["strftime_now"] = lambda text: datetime.datetime.now().strftime(text)
    return made


def function(name, **properties):
    return {"type": "function", "function": {
        "name": name, "description": f"Does “{name}” & more.", "parameters": {
            "type": "object", "properties": properties, "required": list(properties)}}}


def conversations():
    user, reply = lambda text: {"role": "user", "content": text}, lambda text: {"role": "assistant", "content": text}
    system = {"role": "system", "content": "  You are brief.\n"}
    call = lambda name, id="abcdefghi", **arguments: {"role": "assistant", "content": "", "tool_calls": [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}]}
    answer = lambda text: {"role": "tool", "name": "f", "tool_call_id": "abcdefghi", "content": text}
    parts = {"role": "user", "content": [{"type": "text", "text": " see "}, {"type": "image"}, {"type": "text", "text": "this"}]}
    thought = reply("<think>\nIt is 4.\n</think>\n\nFour.")
    texts = ["hi", " padded \n", "", "naïve 日本語 🙂 \u2028 <|im_end|>", "'quoted' \"twice\" \\ {{ x }} {% y %}", "a\n\nb\n  c\t", "\x85\u00a0\x1f x"]
    yield from ([user(text)] for text in texts)
    yield from ([system, user(text), reply(text), user("and?")] for text in texts)
    yield [user("one"), reply("two"), user("three"), reply("four")]
    yield [user("2+2?"), thought, user("sure?")]
    yield [user("2+2?"), thought]
    yield [user("2+2?"), {**reply("Four."), "reasoning_content": "\nIt is 4.\n"}]
    yield [system, parts, reply("a cat")]
    yield [user("weather?"), call("get_weather", city="Zürich", days=3, deep={"a": [1, 2.5, None, True]}), answer("12.5"), reply("cold")]
    yield [system, user("two"), call("f", x="1"), answer("a"), answer("b"), user("so?")]
    yield [user("x"), call("f", id="short"), answer({"content": {"k": 1}})]
    yield [user("x"), {"role": "tool", "content": {"content": "inner"}}, reply("y")]
    yield [reply("first"), user("second")]
    yield [user("a"), user("b")]
    yield [system]
    yield [{"role": "critic", "content": "no"}, user("x")]
    yield [{**system, "tools": "[]"}, user("x")]
    yield [{"role": "user"}]
    yield [{"role": "user", "content": None}]
    yield []


def variables():
    tools = [function("get_weather", city={"type": "string"}, days={"type": "integer"}),
             function("sort", rows={"type": "array", "items": {"type": "object", "properties": {"b": {"type": "number"}, "a": {}}}})]
    for messages in conversations():
        for more in ({}, {"tools": tools}, {"tools": None, "enable_thinking": False}, {"builtin_tools": ["get_weather", "code_interpreter"]}):
            for prompt in (True, False):
                yield {"messages": messages, "add_generation_prompt": prompt, "bos_token": "<s>", "eos_token": "</s>",
                       "date_string": "30 Nov 2026", **more}


def expected(made, template, values, compiled={}):
    try:
        if template not in compiled:
            compiled[template] = made.from_string(template)
        return compiled[template].render(**values)
    except Exception as error:
        return error


def answers(cases):
    lines = "".join(json.dumps({"template": template, "variables": values}) + "\n" for template, values in cases)
    run = subprocess.run([PROBE], input=lines.encode(), stdout=subprocess.PIPE, timeout=300, check=True)
    return [json.loads(line) for line in run.stdout.decode().splitlines()]


class ChatTemplates(unittest.TestCase):
    def compare(self, cases):
        made, raised = environment(), 0
        for (template, values), got in zip(cases, answers(cases), strict=True):
            want = expected(made, template, values)
            with self.subTest(template=template[:200], values=json.dumps(values, ensure_ascii=False)[:300], python=str(want)[:200], got=str(got)[:300]):
                if isinstance(want, Exception):
                    raised += 1
                    self.assertIn("error", got)
                    if isinstance(want, Refused):
                        self.assertIn("the template refuses the conversation: " + str(want), got["error"])
                else:
                    self.assertEqual(got.get("text"), want)
        return raised

    def test_templates_of_the_families(self):
        files = sorted((FOLDER / "chat_templates").glob("*.jinja"))
        self.assertGreater(len(files), 7)
        all_values = list(variables())
        raised = self.compare([(file.read_text(), values) for file in files for values in all_values])
        self.assertGreater(raised, 100)

    def test_constructs(self):
        values = {"messages": [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c"}], "text": " Straße ÉCOLE \n",
                  "n": 7, "x": -2.5, "none_value": None, "yes": True, "words": ["b", "A", "c", "a"], "empty": [],
                  "deep": {"b": [1, {"c": "d'e"}], "a": {"k": 1.0}, "items": 5}, "big": 1e22, "small": 1e-7}
        cases = [(line.encode().decode("unicode_escape").encode("latin-1").decode() if line.startswith("\\n") else line, values)
                 for line in (FOLDER / "chat_templates" / "constructs.txt").read_text().splitlines() if line]
        self.assertGreater(len(cases), 180)
        self.assertGreater(self.compare(cases), 30)

    def test_white_space(self):
        pieces = ["a", " ", "\n", "  \n", "{% if yes %}", "{%- if yes -%}", "{%+ if yes +%}", "{{ 1 }}", "{{- 2 -}}", "{# c #}",
                  "{#- c -#}", "{% raw %} {{ x }} {% endraw %}", "{%- raw -%}\n x {%- endraw -%}", "\t", "\r\n", "{% set q = 1 %}"]
        import random
        draw, cases = random.Random(5), []
        for _ in range(400):
            parts = draw.choices(pieces, k=draw.randrange(1, 9))
            opened = sum("if yes" in part for part in parts)
            ends = ["{% endif %}", " {%- endif %}", "\n  {% endif -%}\n", "{% endif +%}\n"]
            cases.append(("".join(parts) + "".join(draw.choice(ends) + draw.choice(["", "z", "\n"]) for _ in range(opened)), {"yes": True}))
        self.compare(cases)

    def test_what_is_not_supported_is_named_with_its_line(self):
        for template, words in {"a\n{% include 'x' %}": "line 2: tag `include` is not supported", "{{ x | xmlattr }}": "line 1: filter `xmlattr` is not supported",
                                "\n\n{{ 1 is escaped }}": "line 3: test `escaped` is not supported", "{% for x in y recursive %}{% endfor %}": "recursive loops",
                                "{{ f(*a) }}": "line 1: arguments from a list", "{% if 1 %}\n\n": "line 2: expected {% endif %}", "{{ 'a": "has no end"}.items():
            self.assertIn(words, answers([(template, {})])[0]["error"])

    def test_hostile_templates_end(self):
        doubling = "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
        nested = "{% set ns = namespace(l=[]) %}{% for i in range(999) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}"
        shared = "{% set ns = namespace(l=[]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}"
        for template in (doubling, nested, shared, shared.replace("{{ ns.l }}", "{{ ns.l == ns.l }}"), "{{ 'a' * 999999999999 }}",
                         "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
                         "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{{ " + "-" * 9999 + "1 }}", "{{ 1" + "+1" * 9999 + " }}", "{% if 1 %}" * 5000,
                         "{{ 9**9**9**9 }}", "{{ x" + "[0]" * 9999 + " }}", "{{ 1" + "|abs" * 9999 + " }}", "{{ range(99999)|list * 99999 }}",
                         "{{ strftime_now('%9999999d') }}", "{% set a = [1] * 9999999 %}{{ a | sort | join('x' * 99999) }}"):
            self.assertIn("error", answers([(template, {})])[0], template[:100])


if __name__ == "__main__":
    unittest.main()
