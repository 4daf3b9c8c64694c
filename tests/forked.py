"""Commands in processes that have imported the slow libraries already: forks of one server, begun when first asked.

An import of PyTorch, transformers and Lightning takes seconds, more than most of what the commands do in a test.
"""

import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
HANGS = 900.0  # seconds after which a test that hangs fails; a busy machine stays below

processes = multiprocessing.get_context("forkserver")
# beside the entry point: what a run imports when it needs it (the writer of TensorBoard's files, environments)
processes.set_forkserver_preload(
    ["opdlight.train.run", "opdlight.train.__main__", "tests.fakes", "torch.utils.tensorboard", "reasoning_gym",
     "textworld.envs.pddl.textgen", "opdlight.envs.alfworld", "tests.settled"]
)  # fmt: skip
really_run = subprocess.run
Done = subprocess.CompletedProcess[str]


def command(name: str, *arguments: str, cwd: Path = ROOT) -> Done:
    """`python -m <name>` with these arguments."""
    return _run(processes, _command, [name, *arguments], cwd)


def script(path: Path, *arguments: str, cwd: Path = ROOT) -> Done:
    """`python <path>` with these arguments; the commands of opdlight that it runs are forks, too."""
    return _run(processes, _script, [str(path), *arguments], cwd)


def _run(
    context: Any, work: Callable[[list[str]], None], line: list[str], cwd: Path, env: dict[str, str] | None = None
) -> Done:
    with TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("stdout", "stderr")]
        process = context.Process(target=_begin, args=(work, line, str(cwd), env or {}, [str(path) for path in said]))
        process.start()
        process.join(HANGS)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(line, HANGS)
        return subprocess.CompletedProcess(line, process.exitcode, *(path.read_text() for path in said))


def _begin(work: Callable[[list[str]], None], line: list[str], cwd: str, env: dict[str, str], said: list[str]) -> None:
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env}
    work(line)


def _command(line: list[str]) -> None:
    sys.argv = line
    importlib.import_module(f"{line[0]}.__main__").main()


def _script(line: list[str]) -> None:
    sys.argv = line
    sys.path.insert(0, str(Path(line[0]).parent))
    subprocess.run = _fork  # type: ignore[assignment]
    runpy.run_path(line[0], run_name="__main__")


def _fork(line: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` of which the commands of opdlight are forks of this process."""
    if list(line[:2]) != [sys.executable, "-m"]:
        return really_run(line, **options)
    done = _run(
        multiprocessing.get_context("fork"), _command, list(line[2:]), options.get("cwd") or ROOT, options.get("env")
    )
    if not options.get("capture_output"):
        (options.get("stdout") or sys.stdout).write(done.stdout)
        sys.stderr.write(done.stderr)
    if options.get("check"):
        done.check_returncode()
    return done
