"""The runs of the study: each one is `python -m opdlight.train`, some at a time, in folders of their own."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from opdlight.config.resume import FILE, quoted
from opdlight.errors import ConfigError
from opdlight.run_folder.checkpoints import list_checkpoints
from opdlight.run_folder.summary import is_complete
from opdlight.system.console import ProgressLine, progress, say
from opdlight.system.parents import sigterm_with_parent

POLL_SECONDS = 0.5
LOG = "log.txt"  # what a run has printed, beside its folder's other files


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One run of the study."""

    setting: str
    arm: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]  # of opdlight.train, without the folder
    teachers: bool  # it measures the teachers, too

    @property
    def name(self) -> str:
        """As the screen shows it."""
        return f"{self.setting}, {self.arm}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """It has ended, and nothing of it failed."""
        return is_complete(self.folder, teachers=self.teachers)

    @property
    def command(self) -> list[str]:
        """Starts it, or resumes it where it has written a checkpoint."""
        train = [sys.executable, "-m", "opdlight.train"]
        if (self.folder / FILE).is_file() and list_checkpoints(self.folder):
            return [*train, quoted("resume", str(self.folder))]
        return [*train, *self.overrides, quoted("run_dir", str(self.folder))]

    def check(self) -> None:
        """Raise ConfigError if its folder holds a run of other overrides."""
        if not (self.folder / FILE).is_file():
            return
        found = [o for o in json.loads((self.folder / FILE).read_text()) if not o.startswith("hydra.")]
        if found != list(self.overrides):
            expected = f"a new folder, or that of this study ({self.folder} was made by {' '.join(found)})"
            raise ConfigError.wrong("run_dir", expected=expected, got=" ".join(self.overrides))


def slug(name: str) -> str:
    """A name in characters that every file system takes."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-")


def updates_done(folder: Path) -> int:
    """How many updates are in `metrics.csv`."""
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return sum(bool(row.get("loss/train")) for row in csv.DictReader(file))
    except OSError:
        return 0


def train_all(planned: Sequence[Planned], *, jobs: int) -> list[Planned]:
    """Do the runs that are not finished, `jobs` at a time, and return those that failed.

    A run that fails is said at once and does not end the study. If this process is stopped or killed, the runs are
    stopped with a checkpoint each, and the next call goes on there.
    """
    waiting = [run for run in planned if not run.finished]
    running: dict[subprocess.Popen[bytes], Planned] = {}
    failed: list[Planned] = []
    started, done = time.monotonic(), len(planned) - len(waiting)
    if done:
        say(f"{done} of {len(planned)} runs are finished already")
    with progress("runs", len(planned)) as bar, _stopped(running):
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[_start(run, jobs)] = run
            time.sleep(POLL_SECONDS)
            for process in [p for p in running if p.poll() is not None]:
                run = running.pop(process)
                if run.finished:
                    delete_weights(run.folder)
                else:
                    failed.append(run)
                    say(f"{run.name} failed (exit code {process.returncode}): see {run.folder / LOG}")
            left = len(waiting) + len(running)
            _show(bar, running.values(), len(planned) - left, len(planned), started, done)
    return failed


def delete_weights(folder: Path) -> None:
    """Delete checkpoints and the trained weights of a finished run.

    Those of a language model take most of a GB, and nothing in the study reads them.
    """
    for checkpoint in list_checkpoints(folder):
        shutil.rmtree(checkpoint)
    for weights in (folder / "student").glob("*.safetensors"):
        weights.unlink()


def _start(run: Planned, jobs: int) -> "subprocess.Popen[bytes]":
    run.folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    with (run.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            run.command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={"OMP_NUM_THREADS": threads, **os.environ},
            preexec_fn=sigterm_with_parent(),
        )


def _show(bar: ProgressLine, running: Iterable[Planned], done: int, total: int, started: float, before: int) -> None:
    now = [f"{run.name}: update {updates_done(run.folder)}" for run in running]
    figures = ["; ".join(now)] if now else []
    if done > before:
        each = (time.monotonic() - started) / (done - before)
        figures.insert(0, f"left {each * (total - done) / 60:.0f} min")
    bar.update(done, title="runs", figures=figures)


@contextmanager
def _stopped(running: "dict[subprocess.Popen[bytes], Planned]") -> Iterator[None]:
    """Whatever ends the block, SIGTERM too, stops the runs, which write a checkpoint, and waits for them."""
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait()


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
