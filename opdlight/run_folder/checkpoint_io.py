"""How Lightning writes and reads a checkpoint: as a folder, atomically, in the background."""

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed import ProcessGroup

from opdlight.run_folder.checkpoints import FORMAT, MANIFEST, STATE, WEIGHTS, fingerprint
from opdlight.run_folder.shards import (
    OPTIMIZERS,
    WEIGHTS_KEY,
    Pieces,
    read_into,
    read_shapes,
    snapshot,
    with_tensors,
    write_shard,
)
from opdlight.system.distributed import all_gather, rank
from opdlight.system.files import flush, replacing_folder

SHARD = "shard-{rank}.safetensors"
CANNOT_WRITE = (OSError, SafetensorError, RuntimeError)  # a full disk is one of these, by who has met it
T = TypeVar("T")


class CheckpointFolder(CheckpointIO):
    """Writes a checkpoint as a folder in the background, and reads one.

    `save_checkpoint` returns when the state is copied to the CPU's memory; a thread then writes, hashes and renames.
    The folder is there when that is done, which `wait` waits for; a process does not end before.
    """

    def __init__(self) -> None:
        self._writing: Future[bool] | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: ProcessGroup | None = None
    ) -> None:
        """Begin to write the folder `path`, after the one before.

        Args:
            checkpoint: of Lightning.
            path: the folder.
            storage_options: a group of all processes that nothing else uses, on the CPU: each writes its pieces of the
                tensors that are divided. Without a group the first process gathers and writes everything. Where
                tensors are divided, every process must call this.
        """
        self.wait()
        content, pieces = snapshot(checkpoint, divided=storage_options is not None)
        if storage_options is None and rank() > 0:
            return
        thread = ThreadPoolExecutor(1, "checkpoint")  # Python waits for it before it ends
        self._writing = thread.submit(write, content, Path(path), pieces, storage_options)
        thread.shutdown(wait=False)

    def wait(self) -> bool:
        """Wait until the last checkpoint is written; False if that was not possible."""
        writing, self._writing = self._writing, None
        return writing.result() if writing is not None else True

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read the checkpoint `path`, which `checkpoints.newest` has verified, whole; its tensors are on the CPU.

        Those of one process's checkpoint are mapped files: what is copied from them to another place is read then, and
        no more memory is taken.
        """
        folder = Path(path)
        state = load_state(folder)
        if not list(folder.glob(SHARD.format(rank="*"))):
            return {**state, WEIGHTS_KEY: load_file(folder / WEIGHTS)}
        found = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in read_shapes(folder).items()}
        read_into(found, folder)
        weights = {name: tensor for name, tensor in found.items() if not name.startswith(f"{OPTIMIZERS}.")}
        return {**with_tensors(state, found), WEIGHTS_KEY: weights}

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the folder, its manifest first: without one, a folder that is deleted in part is never loaded."""
        (Path(path) / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)

    def teardown(self) -> None:
        """Wait for the last checkpoint."""
        self.wait()


def write(content: Mapping[str, Any], folder: Path, pieces: Pieces, group: ProcessGroup | None = None) -> bool:
    """Write a `snapshot` as the folder `folder`; its files are on the disk when it gets its name.

    If the disk is full, this prints a message, leaves no folder and returns False, on every rank of `group`: an error
    of one rank alone would let the others wait for it forever.
    """
    mine = rank() if group is not None else 0
    temporary = folder.with_name(f".{folder.name}")

    def write_files() -> dict[str, Any]:
        names = []
        if mine == 0:
            save_file(dict(content[WEIGHTS_KEY]), temporary / WEIGHTS)
            torch.save({k: v for k, v in content.items() if k != WEIGHTS_KEY}, temporary / STATE)
            names += [WEIGHTS, STATE]
        if pieces:
            names.append(SHARD.format(rank=f"{mine:05d}"))
            write_shard(pieces, temporary / names[-1])
        for name in names:
            flush(temporary / name)  # here: another machine could not do it for this one
        return {name: fingerprint(temporary / name) for name in names}

    def complete() -> None:
        if mine == 0:
            records = content.get("records", {})
            manifest = {"format": FORMAT, "updates": content.get("updates"), "records": records, "files": files}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
            stack.close()

    try:
        with ExitStack() as stack:
            together(lambda: stack.enter_context(replacing_folder(folder)) if mine == 0 else None, group)
            files = {name: about for part in together(write_files, group) for name, about in part.items()}
            together(complete, group)
    except CANNOT_WRITE as error:
        if mine == 0:
            print(f"Checkpoint {folder} could not be written ({error}); the older ones are kept.")
        return False
    return True


def together(work: Callable[[], T], group: ProcessGroup | None) -> list[T]:
    """What `work` returns on each rank of `group`, or on this process alone.

    Raises:
        Exception: that of `work`; where only another rank's failed, an OSError with its text.
    """
    if group is None:
        return [work()]
    found: list[T] = []
    error: Exception | None = None
    try:
        found = [work()]
    except Exception as raised:  # noqa: BLE001  whatever it is, the others wait for this rank
        error = raised
    parts = all_gather((found, str(error) if error else None), group)
    if error is not None:
        raise error
    for other, (_, why) in enumerate(parts):
        if why is not None:
            raise OSError(f"rank {other}: {why}")
    return [part for parts_of_rank, _ in parts for part in parts_of_rank]


def load_state(folder: Path) -> dict[str, Any]:
    """All of a checkpoint but its weights.

    The optimizers' tensors are a mapped file, or on the meta device if they are divided (`shards.read_into`).
    """
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)
    return {key: value if key == OPTIMIZERS else copy.deepcopy(value) for key, value in state.items()}
