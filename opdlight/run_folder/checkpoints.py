"""Checkpoints of a run: folders that are written atomically, verified when loaded, and never execute code.

`checkpoints/step-00000020/` is the run after twenty steps: `weights.safetensors` (what is trained), `state.pt`
(optimizer, schedule, loops, callbacks; read by torch's weights-only loader) and `manifest.json` (size and SHA-256 of
each file, and how long the records of the run folder were). Where the student is divided over processes, weights and
optimizer lie in a `shard-….safetensors` of each (`shards.py`). `checkpoint_io.py` writes and reads all of it.
"""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import nn

from opdlight.errors import CheckpointError
from opdlight.run_folder.shards import OPTIMIZERS, read_shapes
from opdlight.system.console import progress

FOLDER = "checkpoints"
DAMAGED = "damaged-"  # prefix of the name of a damaged checkpoint
LAST = "-end"  # suffix of the name of the checkpoint that a run writes when it is over
FORMAT = 2  # of what a checkpoint holds; a change of it cannot be resumed across
WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.pt", "manifest.json"
PART = 2**24  # bytes that are read at once
LARGE = 2**31  # bytes; verifying less takes no time worth a line where there is no terminal
VERIFIED_AT_ONCE = 8  # files


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: if it is missing or cannot be read.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        _ = [manifest["files"][name]["sha256"] for name in (WEIGHTS, STATE)], manifest["records"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"The checkpoint {folder} has no readable {MANIFEST} ({why}).") from error
    return manifest


def verify(folder: Path, *, contents: bool = True) -> None:
    """Compare every file of a checkpoint with its manifest: its size and, unless `contents` is False, its SHA-256.

    Raises:
        CheckpointError: if a file is missing or differs.
    """
    files = read_manifest(folder)["files"]
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"The checkpoint {folder} lacks {name}.")
        if (size := (folder / name).stat().st_size) != expected["bytes"]:
            raise _damaged(folder, f"{name} to be of {expected['bytes']} bytes", f"{size}")
    if contents:
        for name, found in _fingerprints(folder, list(files)).items():
            if found != files[name]:
                raise _damaged(folder, f"{name} to be {files[name]}", f"{found}")


def _damaged(folder: Path, expected: str, got: str) -> CheckpointError:
    return CheckpointError(f"The checkpoint {folder} is damaged: expected {expected}, got {got}.")


def _fingerprints(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """The fingerprint of each file, of several at a time; SHA-256 takes seconds for each 10 GB."""
    total = sum((folder / name).stat().st_size for name in names)
    done, lock, stop = 0, threading.Lock(), threading.Event()

    def count(new: int) -> None:
        nonlocal done
        with lock:
            done += new
            line.update(done * 100 // total, 100)
        if stop.is_set():
            raise InterruptedError

    with (
        progress(f"verifying {folder.name} (%)", log=total > LARGE) as line,
        ThreadPoolExecutor(VERIFIED_AT_ONCE) as threads,
    ):
        try:
            return dict(zip(names, threads.map(lambda name: fingerprint(folder / name, count), names), strict=True))
        finally:
            stop.set()  # after Ctrl-C nobody waits for the rest


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    return sorted((run / FOLDER).glob("step-*"))


def steps_of(checkpoint: Path) -> int:
    """The number of steps after which a checkpoint was written, from its name."""
    return int(checkpoint.name.split("-")[1])


def is_last(checkpoint: Path) -> bool:
    """Whether a checkpoint was written at the end of the run, after the last evaluation."""
    return checkpoint.name.endswith(LAST)


def newest(run: Path, *, first: bool = True) -> Path | None:
    """The newest undamaged checkpoint of a run folder; None if the run has not written one yet.

    Args:
        run: the run folder.
        first: whether this is the first process. It compares the files' contents; it renames newer, damaged
            checkpoints to `damaged-step-…` and prints a message. The others compare sizes.

    Raises:
        CheckpointError: if all checkpoints are damaged (they are not renamed), or the newest is of another `FORMAT`.
    """
    damaged: dict[Path, CheckpointError] = {}
    for folder in reversed(list_checkpoints(run)):
        try:
            verify(folder, contents=first)
        except CheckpointError as error:
            damaged[folder] = error
            continue
        if (found := read_manifest(folder).get("format")) != FORMAT:
            raise CheckpointError(
                f"The checkpoint {folder} was written by another version of opdlight (format {found or 1}, this one "
                f"reads {FORMAT}): resume the run with that version, or start a new one."
            )
        if first:
            for bad, why in damaged.items():
                renamed = bad.with_name(f"{DAMAGED}{bad.name}")
                shutil.rmtree(renamed, ignore_errors=True)
                bad.rename(renamed)
                print(f"{why} It is now called {renamed.name}; the run resumes from the checkpoint before it.")
        return folder
    for folder in sorted((run / FOLDER).glob(f"{DAMAGED}*")):  # renamed by an earlier resume
        damaged[folder] = CheckpointError(f"{folder} was damaged.")
    if damaged:
        why = next(iter(damaged.values()))
        raise CheckpointError(f"All checkpoints of {run} are damaged: it cannot be resumed, start a new run. {why}")
    return None


def check_fits(checkpoint: Path, module: nn.Module) -> None:
    """Compare the names and shapes of a checkpoint's weights with those that `module` trains.

    Raises:
        CheckpointError: naming a weight that is missing, unknown or of another shape.
    """
    shapes = {name: tuple(shape) for name, (shape, _) in read_shapes(checkpoint).items()}
    found = {name: shape for name, shape in shapes.items() if not name.startswith(f"{OPTIMIZERS}.")}
    expected = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    for name in sorted(trained | found.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"The checkpoint {checkpoint} is of another model: expected {name} to be "
                f"{expected.get(name, 'absent')}, but got {found.get(name, 'nothing')}. "
                "Resume with the `model.student` of the run."
            )


def fingerprint(path: Path, on_bytes: Callable[[int], None] = lambda read: None) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file; `on_bytes` is called with the size of each part that was read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(PART):
            digest.update(part)
            on_bytes(len(part))
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
