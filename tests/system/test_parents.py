"""Child processes end after their parent was killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from opdlight.system import parents

# a child that does what a rank or a worker does first, says that it is there, and would live for ten minutes
CHILD = "import os, sys, time; from opdlight.system import parents; {begin}; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"  # noqa: E501
PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]); time.sleep(600)"


def lives(process: int) -> bool:
    """A process that has ended but that nobody has asked for yet (a zombie) does not live."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def until(condition: object, seconds: float = 60.0) -> bool:
    """Whether it becomes true, with a generous limit."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.05)
    return bool(condition())  # type: ignore[operator]


@contextmanager
def family(begin: str, said: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A parent and the process id of its child, which has begun."""
    command = [sys.executable, "-c", PARENT, CHILD.format(begin=begin), str(said)]
    unmarked = {name: value for name, value in os.environ.items() if name != parents.LAUNCHER}  # of a test before
    with subprocess.Popen(command, env={**unmarked, **environment}) as parent:
        try:
            assert until(lambda: said.exists() and said.read_text())
            child = int(said.read_text())
            assert lives(child)
            yield parent, child
        finally:
            parent.kill()
    if lives(child):
        os.kill(child, signal.SIGKILL)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")


@needs_proc
@pytest.mark.parametrize("begin", ["parents.end_with_parent()", "import threading; threading.Thread(target=parents.poll, args=(os.getppid(), 0.1)).start()"])  # fmt: skip # noqa: E501
def test_a_worker_ends_with_its_parent(begin: str, tmp_path: Path) -> None:
    with family(begin, tmp_path / "said") as (parent, child):
        parent.kill()
        assert until(lambda: not lives(child))


@needs_proc
def test_a_process_that_was_not_launched_by_ours_is_left_alone(tmp_path: Path) -> None:
    # as torchrun's and SLURM's are: ranks, but without our mark
    with family("parents.follow_launcher()", tmp_path / "said", LOCAL_RANK="1") as (parent, child):
        parent.kill()
        parent.wait()
        time.sleep(0.5)
        assert lives(child)


@needs_proc
def test_a_rank_whose_launcher_has_gone_already_ends_at_once(tmp_path: Path) -> None:
    code = "from opdlight.system import parents; parents.follow_launcher(); print('went on')"
    environment = {**os.environ, "LOCAL_RANK": "1", parents.LAUNCHER: "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
    environment["LOCAL_RANK"] = "0"  # the launcher itself
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"went on\n")


@needs_proc
def test_a_rank_ends_when_its_launcher_is_killed_before_they_have_found_each_other(tmp_path: Path) -> None:
    small = ["task=sums", "task.tasks.sums.episodes=1", "rollout.groups=2", "trainer.max_steps=2", "doctor=false"]
    small += ["engine._target_=tests.fakes.AnsweringEngine", "trainer=ddp", "trainer.accelerator=cpu"]
    command = [sys.executable, "-m", "opdlight.train", *small, f"hydra.run.dir={tmp_path / 'run'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as one:
        try:
            assert until(lambda: children(one.pid) or one.poll() is not None, 240)
            (rank,) = children(one.pid)
            assert lives(rank)
        finally:
            one.kill()  # the other rank has just begun: it imports, then waits for this one
    assert until(lambda: not lives(rank)), (tmp_path / "log").read_text()[-3000:]


def children(process: int) -> list[int]:
    """Its children that run `opdlight.train`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_text()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == process and "opdlight.train" in command:
            found.append(int(stat.parent.name))
    return found
