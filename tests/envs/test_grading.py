"""The grader: what counts as equal, and that no answer can stop a run."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest

from opdlight.envs import grading
from opdlight.envs.arithmetic import as_decimal, as_number
from opdlight.envs.grading import Verdict, compare, grade, judge, plain
from opdlight.errors import EnvError

HOSTILE = "9^{9^{9^9}}"


def fail() -> bool:
    """Always raises."""
    raise KeyError("no")


def die() -> bool:
    """Takes the whole process along."""
    os._exit(3)


def eat_memory() -> bool:
    """Asks for more memory than the worker may have."""
    return len(bytearray(16 * 2**30)) > 0


def process_id_is(pid: int) -> bool:
    """True inside process `pid`."""
    return os.getpid() == pid


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", Fraction(12)), ("-3", Fraction(-3)), ("+7", Fraction(7)), ("007", Fraction(7)),
        ("1,234", Fraction(1234)),
        ("1,234,567.5", Fraction(2469135, 2)), (".5", Fraction(1, 2)), ("3/4", Fraction(3, 4)),
        ("-6/8", Fraction(-3, 4)),
        (r"\frac{1}{2}", Fraction(1, 2)), (r"-\dfrac{1}{-2}", Fraction(1, 2)), ("0/5", Fraction(0)),
        (" 5 ", Fraction(5)),
        ("1,2", None), ("12,34", None), ("1/0", None), (r"\frac{1}{0}", None), ("1e5", Fraction(100000)),
        ("10^{5}", Fraction(100000)), ("10^-2", Fraction(1, 100)), (r"-1.5\times 10^{3}", Fraction(-1500)),
        ("\u22125", Fraction(-5)), ("1e9999", None),
        ("10^{5", None), ("2^{5}", None), ("x", None), ("", None),
        ("--1", None), ("1.2.3", None), ("1 2", None), ("9" * 65, None), ("٣x", None),
    ],
)  # fmt: skip
def test_as_number(text: str, value: Fraction | None) -> None:
    assert as_number(text) == value


def test_numbers_agree_with_python_on_random_texts() -> None:
    rng = random.Random(0)
    for _ in range(500):
        value = Fraction(rng.randint(-(10**9), 10**9), 10 ** rng.randint(0, 4))
        assert as_decimal(f"{float(value):.4f}") == Fraction(f"{float(value):.4f}")
        assert as_decimal(f"{value.numerator:,}") == value.numerator
        assert as_number(f"{value.numerator}/{value.denominator}") == value


def test_plain() -> None:
    assert plain(r"$\text{(A)}$") == "(A)"
    assert plain("1{,}000.") == "1,000"
    assert plain(" \u22123 ") == "-3"
    assert plain(r"1\,000") == "1000"


@pytest.mark.parametrize(
    ("answer", "target", "equal"),
    [
        ("42", "42", True), ("42.0", "42", True), ("1,000", "1000", True), ("0.5", r"\frac{1}{2}", True),
        ("41", "42", False),
        ("", "42", False), ("42", "", False), ("on", "no", False), ("Alice", "Alice", True), ("true", "True", False),
        (r"\text{east}", "east", True), (r"\sqrt{8}", r"2\sqrt{2}", True), ("(x+1)^2", "x^2+2x+1", True),
        ("(1,2)", "(2,1)", False), (r"\{1,2\}", r"\{2,1\}", True), ("x=5", "5", True), ("0.333333", "1/3", True),
        ("0.34", "1/3", False), ("10^{10}", "10000000000", True), (r"\frac{", "3", False), ("\\" * 500, "3", False),
        (r"50\%", "50", True), (r"50\%", "0.5", True), ("0.5", r"50\%", True), ("50%", r"50\%", True),
        ("5%", "0.5", False),
        (r"5~\text{cm}", "5", True), (r"5\text{ dollars}", "5", True), ("90°", "90", True), ("4 cm", "5", False),
        (r"5\text{ million}", "5", False), ("--3", "3", False), ("-(-3)", "3", False), ("|-3|", "3", False),
        ("(-3)", "-3", True), ("}{" * 300, "x+1", False), ("\x00", "x+1", False), ("[0, 1)", "[0, 1]", False),
    ],
)  # fmt: skip
def test_grade(answer: str, target: str, equal: bool) -> None:
    assert grade(answer, target) is equal


def test_a_hostile_answer_is_wrong_and_the_next_one_is_graded() -> None:
    assert compare(HOSTILE, r"\sqrt{2}") == Verdict(correct=False, timed_out=True)  # by CPU time
    assert compare(HOSTILE, "3") == Verdict(correct=False)  # a power is no number yet, so nothing is computed
    assert grade(r"\sqrt{8}", r"2\sqrt{2}")


def test_every_way_to_go_wrong_is_a_verdict() -> None:
    assert judge(fail) == Verdict(correct=False, failed=True)
    assert judge(die) == Verdict(correct=False, failed=True)
    assert judge(eat_memory) == Verdict(correct=False, failed=True)
    assert judge(process_id_is, os.getpid()) == Verdict(correct=False)  # it ran, in another process


def test_a_missing_package_is_an_error_and_not_a_wrong_answer() -> None:
    with pytest.raises(EnvError, match="no_such_package"):
        judge(fail, imports=("no_such_package",))
    assert judge(fail).failed  # the worker lives on


def test_an_idle_worker_that_was_killed_is_replaced() -> None:
    assert judge(fail).failed
    process = grading._worker._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert grade("(x+1)^2", "x^2+2x+1")


def test_threads_share_the_worker() -> None:
    def ask(n: int) -> bool:
        return grade(f"({n}+x)^2", f"x^2+{2 * n}x+{n * n + n % 2}")

    main_thread_only = threading.current_thread()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(24))) == [n % 2 == 0 for n in range(24)]
    assert main_thread_only is threading.main_thread()


CHILD = """
import os, sys, threading
from opdlight.envs import grading
assert grading.grade("x+1", "1+x")
print(grading._worker._process.pid, flush=True)
if sys.argv[1] == "busy":
    threading.Thread(target=grading.grade, args=("9^{9^{9^9}}", "2^{0.5}"), daemon=True).start()
    import time; time.sleep(0.5)
os.kill(os.getpid(), 9)
"""


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_the_worker_dies_with_its_killed_parent(state: str) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, state], capture_output=True, text=True, env={"PYTHONPATH": "."})
    pid = int(done.stdout)
    deadline = time.monotonic() + 300
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_running(pid)


def test_a_forked_child_grades_through_its_own_worker() -> None:
    assert judge(fail).failed
    pid = os.fork()
    if pid == 0:
        os._exit(0 if grading._worker._process is None and grade("x+1", "1+x") else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert judge(fail).failed
