"""An answer that still has to be computed is none, where the right answer is a number; numbers written out are."""

import subprocess
import sys

import pytest

from opdlight.envs.arithmetic import as_decimal, unfinished
from opdlight.envs.grading import Verdict, compare
from opdlight.envs.question import extract_answer, last_number
from opdlight.envs.reasoning_gym import ReasoningGymEnv

TO_COMPUTE = [
    ("3+3", "6"), ("3 + 3", "6"), ("(3)+(3)", "6"), ("3+3", "6.0"), ("x=3+3", "6"), (r"\left(3+3\right)", "6"),
    ("9-3", "6"), ("9\u22123", "6"), ("9 - -3", "12"), ("-3+9", "6"), ("2*3", "6"), (r"2\cdot 3", "6"),
    (r"2 \times 3", "6"), ("2×3", "6"), ("2 x 3", "6"), ("(2)(3)", "6"), ("2(3)", "6"), (r"6\cdot1", "6"),
    ("12/2", "6"), (r"\frac{12}{2}", "6"), (r"12 \div 2", "6"), ("12/2/3", "2"), (r"\frac{1+2}{6}", "1/2"),
    (r"\frac{\frac{1}{2}}{\frac{1}{4}}", "2"), ("1/2+1/2", "1"), (r"\frac{1}{2}+\frac{1}{2}", "1"),
    (r"\sqrt{36}", "6"), ("2^{3}", "8"), ("2**3", "8"), ("(-2)^2", "4"), ("3!", "6"), (r"\gcd(12,18)", "6"),
    ("3+3 cm", "6 cm"), (r"50\%+25\%", r"75\%"), (r"2\times 3\text{ cm}", r"6\text{ cm}"), (r"3\cdot 10^{2}+1", "301"),
    (r"(1+1)\sqrt{3}", r"2\sqrt{3}"), (r"1+2+\sqrt{3}", r"3+\sqrt{3}"),
]  # fmt: skip
WRITTEN_OUT = [
    ("6", "6"), ("\u22125", "-5"), ("42.0", "42"), ("1,000", "1000"), ("6.", "6"), ("x=5", "5"), ("3+3=6", "6"),
    (r"\frac{1}{2}", "0.5"), (r"-\frac{1}{2}", "-0.5"), ("2/4", "1/2"), ("3/4", "3/4"), (r"2\frac{1}{2}", "2.5"),
    (r"2\sqrt{3}", r"2\sqrt{3}"), (r"\sqrt{12}", r"2\sqrt{3}"), (r"1+\sqrt{2}", r"\sqrt{2}+1"), (r"2\pi", r"2\pi"),
    (r"5-2\sqrt{3}", r"5-2\sqrt{3}"), (r"\frac{1+\sqrt{5}}{2}", r"\frac{1+\sqrt{5}}{2}"),
    (r"10^{5}", "100000"), ("10^5", "100000"), ("10^{-3}", "0.001"), (r"1.5\times 10^{3}", "1500"), ("1e5", "100000"),
    ("6 cm", "6"), (r"6\text{ cm}^2", "6"), ("50\\%", "50"), (r"90^\circ", "90"), (r"\$6", "6"), (r"5 N\cdot m", "5"),
    ("(1,2)", "(1,2)"), ("[0, 1)", "[0, 1)"), (r"\{1,2\}", r"\{2,1\}"), ("x+3", "3+x"), ("3:2", "3:2"),
    (r"2^{10}", r"2^{10}"), (r"3\cdot 2^{10}", r"3\cdot 2^{10}"), ("2 + 3i", "2+3i"), ("Alice", "Alice"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "target"), TO_COMPUTE)
def test_what_is_still_to_be_computed_is_wrong(answer: str, target: str) -> None:
    assert unfinished(answer, target)
    assert compare(answer, target) == Verdict(correct=False)  # without asking math-verify


@pytest.mark.parametrize(("answer", "target"), WRITTEN_OUT)
def test_what_is_written_out_is_left_to_the_comparison(answer: str, target: str) -> None:
    assert not unfinished(answer, target)


@pytest.mark.parametrize(
    ("answer", "target"),
    [(r"10^{5}", "100000"), (r"\sqrt{12}", r"2\sqrt{3}"), ("6 cm", "6"), (r"\{1,2\}", r"\{2,1\}")],
)
def test_math_verify_still_sees_what_is_right(answer: str, target: str) -> None:
    assert compare(answer, target).correct


@pytest.mark.parametrize("dataset", ["chain_sum", "products", "gcd", "power_function"])
def test_copying_the_question_earns_nothing(dataset: str) -> None:
    env = ReasoningGymEnv(dataset)
    env.reset(seed=1)
    stored = str(env._entry["answer"])
    value = as_decimal(stored)
    assert value is not None
    assert env.judge(stored).correct
    assert not env.judge(f"{value - 1}+1").correct
    assert not env.judge(f"{value}*1").correct


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so x = \u22125.", "-5"), ("It is 3/4", "3/4"), ("about 1e5", "100000"), ("1.5e3 m", "1500"), ("1e-2", "1e-2"),
        (r"that is \frac{3}{4}.", r"\frac{3}{4}"), ("10^{5}", "100000"), (r"2 \times 10^3", "2000"),
        ("3 + 3 = 6", "6"), ("12 / 4", "12/4"), ("12 / 4 = 3", "3"), ("1,234.5, yes", "1,234.5"), (".5", ".5"),
        ("no", None),
    ],
)  # fmt: skip
def test_the_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number
    assert extract_answer(text, "boxed_or_last_number") == number


HOSTILE = r"""
import resource
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))  # linear needs 5 s, one quadratic reading minutes

from opdlight.envs.arithmetic import as_decimal
from opdlight.envs.base import read_action
from opdlight.envs.grading import compare
from opdlight.envs.question import extract_answer
from opdlight.envs.reasoning_gym import is_formula
from opdlight.report.text import visible

pieces = ["\\", "\\boxed{", "\\boxed ", "\\boxed\\", "{", "}", "\\{", "<action>", "</action>", "<think>", "</think>"]
pieces += ["1,", "1/", "1", "1.", "-", "10^", "1e"]
pieces += ["\\frac{1", "\\frac{1}{", "\\text{", "\\text", " ", ".", "'", "a "]
for text in (piece * (300_000 // len(piece)) + end for piece in pieces for end in ("", "x")):
    extract_answer(text, "boxed_or_last_number")
    read_action(text)
    read_action(text, tags=True)
    compare(text, "6")
    as_decimal(text)
    is_formula(text)
    visible(text[:100_000])
print(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
"""


def test_reading_takes_time_in_proportion_to_the_length() -> None:
    done = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"killed by signal {-done.returncode}: {done.stderr}"
