r"""Is this answer equal to that one? Numbers first, then text, then math-verify in a process that can be killed.

Answers come from a language model, so `9^{9^{9^9}}` must cost seconds, not the run: `judge` evaluates in a worker
process whose CPU time is limited by the kernel, which also stops C loops that hold the interpreter's lock.
"""

import atexit
import importlib
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from opdlight.envs.arithmetic import as_number, same_quantity, unfinished
from opdlight.errors import EnvError

CPU_SECONDS = 2.0  # for one answer; CPU time, so that a busy machine grades like an idle one
WALL_SECONDS = 60.0  # for one answer that uses no CPU, and for the worker's start
MEMORY_BYTES = 4 * 2**30  # address space of the worker
MAX_ANSWER = 1000  # characters; nothing longer goes to math-verify

_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s,]+[^\W\d_]+)*")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the grader found; an answer that could not be graded is wrong."""

    correct: bool
    timed_out: bool = False  # cost more than CPU_SECONDS
    failed: bool = False  # the comparison raised or crashed


def plain(text: str) -> str:
    r"""The answer without what changes no value: outer `$`, `\text{}`, `\,` and `{,}` in numbers, a final full stop."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text.strip().strip("$"))
    text = text.replace("{,}", ",").replace("\\!", "").replace("\\,", "").replace("\u2212", "-")
    return " ".join(text.split()).removesuffix(".")


def compare(answer: str, target: str) -> Verdict:
    r"""Judge a final answer (no sentence, no `\boxed`) against the target: numbers, text, then math-verify.

    Where the target is a number, an answer that still has to be computed is wrong (`arithmetic.unfinished`). Integers
    decide at once, so do words (math-verify would read `no` and `on` as the same product). Everything else
    that is not equal as a number or as text (LaTeX, sets, intervals, rounded decimals) goes to math-verify.
    """
    answer, target = plain(answer), plain(target)
    if not answer or not target:
        return Verdict(correct=False)
    if answer == target:
        return Verdict(correct=True)
    if unfinished(answer, target):
        return Verdict(correct=False)
    if same_quantity(answer, target):
        return Verdict(correct=True)
    value, wanted = as_number(answer), as_number(target)
    if value is not None and wanted is not None:
        if value == wanted:
            return Verdict(correct=True)
        if value.denominator == wanted.denominator == 1:
            return Verdict(correct=False)
    if _WORDS.fullmatch(answer) or _WORDS.fullmatch(target) or max(len(answer), len(target)) > MAX_ANSWER:
        return Verdict(correct=False)
    return judge(math_equal, answer, target, imports=("math_verify",))


def grade(answer: str, target: str) -> bool:
    """True if `answer` equals `target`; see `compare`. Safe from any thread."""
    return compare(answer, target).correct


def math_equal(answer: str, target: str) -> bool:
    """math-verify on two LaTeX expressions, without its time-outs: call it through `judge` only."""
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its own time-outs are off
    gold, said = (parse(f"${t}$", [LatexExtractionConfig()], parsing_timeout=None) for t in (target, answer))
    return bool(verify(gold, said, timeout_seconds=None))


def judge(function: Callable[..., bool], *args: Any, imports: tuple[str, ...] = ()) -> Verdict:
    """`function(*args)` in the worker process, under its limits. Safe from any thread; calls wait for each other.

    `function` must be importable by name and `args` picklable; `imports` are loaded before the clock starts.
    """
    return _worker.judge(function, args, imports)


class _Worker:
    """One process that evaluates requests, started by the first one and replaced after it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def judge(self, function: Callable[..., bool], args: tuple[Any, ...], imports: tuple[str, ...]) -> Verdict:
        with self._lock:
            if self._process is None or self._process.poll() is not None or self._pipe is None:
                self._start()
            assert self._process is not None
            assert self._pipe is not None
            try:
                self._pipe.send((function, args, imports))
                if (not_ready := self._receive()) is not None:
                    raise EnvError(
                        f"The grader's process cannot load {function.__qualname__} or {imports}: {not_ready}"
                    )
                verdict: Verdict = self._receive()
                return verdict
            except TimeoutError:
                self.stop()
                return Verdict(correct=False, timed_out=True)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                killed_by_kernel = self._process.wait() == -signal.SIGPROF
                self.stop()
                return Verdict(correct=False, timed_out=killed_by_kernel, failed=not killed_by_kernel)

    def _receive(self) -> Any:
        assert self._pipe is not None
        if not self._pipe.poll(WALL_SECONDS):
            raise TimeoutError
        return self._pipe.recv()

    def _start(self) -> None:
        # Not multiprocessing's spawn: that would import the caller's main module (a whole training run) again.
        self.stop()
        self._pipe, theirs = Pipe()
        code = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from opdlight.envs.grading import serve; "
        command = [sys.executable, "-c", code + "serve()", json.dumps(sys.path), str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def serve() -> None:
    """The worker's main loop: receive a request, send None (or what cannot be loaded), send a Verdict.

    It ends when its parent closes the pipe or dies.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    pipe, parent = Connection(int(sys.argv[2])), os.getppid()
    while True:
        while not pipe.poll(5.0):
            if os.getppid() != parent:  # a forked sibling may hold the pipe open after the parent has died
                return
        try:
            function, args, imports = pipe.recv()
            for name in imports:
                importlib.import_module(name)
        except EOFError:
            return
        except (ImportError, AttributeError) as error:  # not the answer's fault: the parent raises it
            pipe.send(repr(error))
            continue
        pipe.send(None)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal is not handled: the kernel kills this process
        try:
            verdict = Verdict(correct=bool(function(*args)))
        except Exception:  # noqa: BLE001  whatever a scorer makes of hostile text, the answer is wrong and counted
            verdict = Verdict(correct=False, failed=True)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        pipe.send(verdict)


def _new_worker() -> None:
    global _worker
    _worker = _Worker()


_worker = _Worker()
os.register_at_fork(after_in_child=_new_worker)  # a forked child must not talk through its parent's pipe
atexit.register(lambda: _worker.stop())
