"""The tool in a terminal: lines that fit its width, Ctrl-C in every phase, how threads wait."""

import fcntl
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest

from tool import MOH, SMALL, json_lines, run, train_small

# Big enough that every phase below takes many seconds on one thread.
BIG = ("--preset", "llm-tiny", "--model.hidden_size", 512, "--model.intermediate_size", 1024, "--model.num_attention_heads", 8,
       "--model.num_hidden_layers", 6)


class Terminal:
    """The tool with its standard error in a terminal of that width."""

    def __init__(self, *arguments, columns=80):
        self.leader, follower = pty.openpty()
        self.resize(columns)
        self.process = subprocess.Popen([MOH, *map(str, arguments)], stdout=subprocess.PIPE, stderr=follower, text=True)
        os.close(follower)
        self.seen = ""

    def resize(self, columns):
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))

    def read(self, seconds=60.0):
        """What it writes next; "" when it has ended or says nothing for so long."""
        if not select.select([self.leader], [], [], seconds)[0]:
            return ""
        try:
            part = os.read(self.leader, 65536).decode(errors="replace")
        except OSError:  # the other side is closed
            return ""
        self.seen += part
        return part

    def read_until(self, words):
        while words not in self.seen:
            assert self.read(), f"`{words}` was not shown:\n{self.seen}"

    def finish(self):
        """Its exit status and standard output."""
        while self.read():
            pass
        out = self.process.communicate()[0]
        os.close(self.leader)
        return self.process.returncode, out


class TerminalTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="moh_terminal_"))
        cls.text, cls.dense, cls.log = train_small(cls.folder)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def test_progress_fits_the_terminal(self):
        options = ("train", *SMALL, "--data", self.text, "--valid", self.text, "--valid-windows", 2, "--steps", 40,
                   "--validate-every", 20, "--log-every", 1, "--lr", "1e-2", "--warmup", 5)
        for columns, resized in ((80, None), (50, None), (80, 40)):
            terminal = Terminal(*options, "--out", self.folder / f"width_{columns}_{resized}", columns=columns)
            if resized:
                terminal.read_until("%")
                terminal.resize(resized)
            status, out = terminal.finish()
            self.assertEqual(status, 0)
            bars = [part for part in re.split(r"\r|\n|\x1b\[[0-9]*[A-Z]", terminal.seen) if re.match(r"train .*%", part)]
            self.assertGreater(len(bars), 2)
            self.assertLess(max(map(len, bars)), columns)
            if resized:
                self.assertLess(len(bars[-1]), resized)
            self.assertTrue(all(bar.count("tokens/s") <= 1 for bar in bars), bars)
            self.assertRegex(out, r"wrote \S+: 40 steps, loss [0-9.]+, valid loss [0-9.]+, valid perplexity [0-9.]+")
        plain = run(*options, "--out", self.folder / "plain").stderr
        self.assertEqual(plain.count("100 %"), 1)

    def test_ctrl_c_ends_every_phase_within_a_second(self):
        big, moh, text = self.folder / "big", self.folder / "big_moh", self.folder / "long.txt"
        json_lines("train", *BIG, "--data", self.text, "--out", big, "--steps", 1, "--batch", 1, "--sequence", 16)
        json_lines("convert", big, moh)
        text.write_text(self.text.read_text() * 40)
        step = ("--batch", 8, "--sequence", 256)
        for phase, arguments in (
                ("eval", ("eval", big, "--data", text)),
                ("measuring the head load", ("inspect", moh, "--data", text, "--max-windows", 1000)),
                ("measuring the heads", ("convert", big, self.folder / "c", "--shared-by", "importance", "--data", text,
                                         "--calibration-windows", 500)),
                ("gradients", ("convert", big, self.folder / "r", "--recipe", "best", "--data", text, "--calibration-windows", 500)),
                ("validating", ("tune", big, "--data", text, "--valid", text, "--out", self.folder / "t1")),
                ("first step", ("tune", big, "--data", text, "--out", self.folder / "t2", *step))):
            with self.subTest(phase):
                terminal = Terminal(*arguments, "--threads", 1)
                terminal.read_until(phase)
                self.assertIn("%", terminal.seen)
                time.sleep(0.3)
                start = time.time()
                terminal.process.send_signal(signal.SIGINT)
                status, out = terminal.finish()
                self.assertLess(time.time() - start, 3)  # a second, on a machine that may be busy
                self.assertEqual(status, 130, out + terminal.seen)
                if arguments[0] == "tune":
                    self.assertIn("--resume", out)
        self.assertFalse((self.folder / "c" / "model.safetensors").exists())

    def test_an_interrupted_step_comes_again(self):
        """A run that Ctrl-C stops inside a step ends with the same numbers as one that goes through."""
        options = ("train", *BIG, "--data", self.text, "--steps", 3, "--batch", 8, "--sequence", 64, "--log-every", 1, "--threads", 1)
        whole = json_lines(*options, "--out", self.folder / "whole")
        stopped = self.folder / "stopped"
        terminal = Terminal(*options, "--out", stopped)
        terminal.read_until("step 1")  # shown while the second one is computed
        terminal.process.send_signal(signal.SIGINT)
        self.assertEqual(terminal.finish()[0], 130)
        rest = json_lines("train", "--resume", "--out", stopped, "--threads", 1)
        self.assertEqual([line["loss"] for line in rest], [line["loss"] for line in whole][-len(rest):])

    def test_programs_wait_as_asked(self):
        """libgomp reads its spinning from the environment when it is loaded: the program has put it there, or left it."""
        def setting(**environment):
            process = subprocess.Popen([MOH, "generate", str(self.dense), "--prompt", "-", "--max-tokens", "1"], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                       env={k: v for k, v in os.environ.items() if not k.startswith(("GOMP", "OMP"))} | environment)
            try:
                time.sleep(0.5)  # it waits for the prompt, or still loads: exec comes first
                block = pathlib.Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            finally:
                process.communicate(b"x")
            return [entry.decode() for entry in block if entry.startswith((b"GOMP_SPINCOUNT", b"OMP_WAIT_POLICY"))]
        self.assertRegex(setting()[0], r"^GOMP_SPINCOUNT=[1-9][0-9]*$")
        self.assertEqual(setting(GOMP_SPINCOUNT="7"), ["GOMP_SPINCOUNT=7"])
        self.assertEqual(setting(OMP_WAIT_POLICY="active"), ["OMP_WAIT_POLICY=active"])

    def test_threads_are_the_cores_that_the_process_may_use(self):
        one = {sorted(os.sched_getaffinity(0))[0]}
        done = subprocess.run([MOH, "info", "--json"], capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, one),
                              env={k: v for k, v in os.environ.items() if not k.startswith("OMP")})
        self.assertIn('"threads":1,', done.stdout)


if __name__ == "__main__":
    unittest.main(argv=["terminal"])
