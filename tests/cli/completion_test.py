"""The scripts of `moh completion`, sourced in their shells: commands, options, values, files and folders."""

import pathlib
import shutil
import subprocess
import tempfile
import unittest

from tool import run


class Completion(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="moh_completion_"))
        (cls.folder / "text.txt").write_text("words")

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def completed(self, shell, *words):
        """What the shell offers behind these words, the last of which is being typed."""
        script = self.folder / f"completion.{shell}"
        script.write_text(run("completion", shell).stdout)
        line = " ".join(words)
        if shell == "bash":
            array = " ".join(f"'{word}'" for word in words)
            code = f"source {script}; COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _moh; printf '%s\\n' \"${{COMPREPLY[@]}}\""
            command = ["bash", "-c", code]
        elif shell == "fish":
            command = ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"]
        else:  # what completion would do is told by stand-ins for zsh's own functions
            array = " ".join(f"'{word}'" for word in words)
            stubs = ("compdef() {}; _files() { print -l -- files$1 }; "
                     "_describe() { local -a all; all=(${(P)2}); print -l -- ${all%%:*} }; "
                     "_arguments() { print -l -- ${${@%%\\[*}} ${(M)@:#*:value:*} }; ")
            command = ["zsh", "-fc", f"{stubs} source {script}; words=({array}); CURRENT={len(words)}; _moh"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder)
        self.assertEqual(done.stderr, "")
        return [word.split("\t")[0] for word in done.stdout.splitlines() if word]

    def test_completion(self):
        (self.folder / "a folder").mkdir(exist_ok=True)
        for shell in ("bash", "zsh", "fish"):
            if shutil.which(shell) is None:
                continue
            with self.subTest(shell):
                commands = self.completed(shell, "moh", "")
                self.assertLessEqual({"train", "tune", "convert", "eval", "generate", "report", "completion"}, set(commands))
                self.assertEqual(self.completed(shell, "moh", "tokenizer", "enc")[:1], ["encode"])
                options = [word for word in self.completed(shell, "moh", "train", "--") if word.startswith("--")]
                self.assertEqual(sorted(options), sorted(set(options)))
                self.assertLessEqual({"--preset", "--seed", "--sheet-count", "--json", "--train.lr"}, set(options))
                if shell == "zsh":
                    self.assertTrue(any("(auto ema model)" in word for word in self.completed(shell, "moh", "sample", "x", "--w")))
                    continue
                self.assertEqual(self.completed(shell, "moh", "sample", "x", "--weights", ""), ["auto", "ema", "model"])
                self.assertEqual(self.completed(shell, "moh", "completion", "z"), ["zsh"])
                self.assertIn("llm-tiny", self.completed(shell, "moh", "train", "--preset", "llm"))
                self.assertEqual([word.rstrip("/") for word in self.completed(shell, "moh", "train", "--out", "a\\ f" if shell == "fish" else "a f")], ["a folder"])
                self.assertEqual([word for word in self.completed(shell, "moh", "train", "--out", "text") if "txt" in word], [])
                self.assertIn("text.txt", self.completed(shell, "moh", "eval", "x", "--data", "te"))
        self.assertEqual(self.completed("bash", "moh", "sample", "--weights", "=", "e"), ["ema"])


if __name__ == "__main__":
    unittest.main(argv=["completion"])
