#!/usr/bin/env python3
"""check.py PROGRAM: small_test's outcomes, test by test, and its status with and without a failure; and that nothing is
missing that the tests of kernels and operators use."""
import pathlib
import re
import subprocess
import sys

program = sys.argv[1]
result = subprocess.run([program], capture_output=True, text=True)
outcomes = dict((name, outcome.strip()) for outcome, name in re.findall(r"^\[ +(OK|FAILED|SKIPPED) +\] (\S+) \(", result.stdout, re.M))
expected = {"Some/Values.IsOne/number1": "OK", "Some/Values.IsOne/number2": "SKIPPED",
            "Some/Values.IsOne/number3": "FAILED", "Passes.WhenAllHolds": "OK"}
for name, outcome in outcomes.items():
    wanted = "FAILED" if name.startswith("Fails.") else expected[name]
    assert outcome == wanted, (name, outcome)
assert set(expected) < set(outcomes) and len(outcomes) == 12, outcomes
assert result.returncode == 1
assert "not reached" not in result.stdout
for pattern, status in (("Passes.*", 0), ("*Values*-*number3", 0), ("Fails.OnFail", 1)):
    assert subprocess.run([program, "--gtest_filter=" + pattern], capture_output=True).returncode == status, pattern

here = pathlib.Path(__file__).resolve().parent
header = (here / "gtest/gtest.h").read_text()
for source in [*here.parent.glob("kernels/*_test.cpp"), *here.parent.glob("ops/*_test.cpp")]:
    for name in set(re.findall(r"\b(?:EXPECT|ASSERT|GTEST|ADD)_[A-Z_]+|\bSUCCEED\b|\btesting::\w+", source.read_text())):
        assert re.search(rf"\b{name.removeprefix('testing::')}\b", header), f"{source} uses {name}: add it to {here}/gtest/gtest.h"
