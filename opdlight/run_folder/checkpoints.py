"""Checkpoints of a run: folders that are written atomically, verified when loaded, and never execute code.

`checkpoints/step-00000020/` is the run after twenty steps: `weights.safetensors` (what is trained), `state.pt`
(optimizer, schedule, loops, callbacks; read by torch's weights-only loader) and `manifest.json` (size and SHA-256 of
both files, and how long the records of the run folder were).
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from opdlight.errors import CheckpointError
from opdlight.system.files import replacing_folder

FOLDER = "checkpoints"
DAMAGED = "damaged-"  # prefix of the name of a damaged checkpoint
LAST = "-end"  # suffix of the name of the checkpoint that a run writes when it is over
FORMAT = 2  # of what a checkpoint holds; a change of it cannot be resumed across
WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.pt", "manifest.json"


class CheckpointFolder(CheckpointIO):
    """How Lightning writes and reads a checkpoint: as a folder, atomically."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the folder `path`.

        If the disk is full, this prints a message and leaves no folder. It does not raise: Lightning calls it on one
        rank only, and the others would wait for that rank forever.
        """
        folder = Path(path)
        try:
            with replacing_folder(folder) as temporary:
                save_file(_unshared(checkpoint["state_dict"]), temporary / WEIGHTS)
                torch.save({k: v for k, v in checkpoint.items() if k != "state_dict"}, temporary / STATE)
                files = {name: _fingerprint(temporary / name) for name in (WEIGHTS, STATE)}
                records = checkpoint.get("records", {})
                manifest = {"format": FORMAT, "updates": checkpoint.get("updates"), "records": records, "files": files}
                (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        except OSError as error:
            print(f"Checkpoint {folder} could not be written ({error}); the older ones are kept.")

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Verify and read the checkpoint `path`; its tensors are on the CPU.

        Raises:
            CheckpointError: if a file is missing or damaged.
        """
        folder = Path(path)
        verify(folder)
        state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        return {**state, "state_dict": load_file(folder / WEIGHTS)}

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the folder, its manifest first: without one, a folder that is deleted in part is never loaded."""
        (Path(path) / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


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


def verify(folder: Path) -> None:
    """Compare every file of a checkpoint with the size and the SHA-256 in its manifest.

    Raises:
        CheckpointError: if a file is missing or differs.
    """
    for name, expected in read_manifest(folder)["files"].items():
        if not (folder / name).is_file():
            raise CheckpointError(f"The checkpoint {folder} lacks {name}.")
        if (found := _fingerprint(folder / name)) != expected:
            raise CheckpointError(f"The checkpoint {folder} is damaged: expected {name} to be {expected}, got {found}.")


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
        first: whether this is the first process. It renames newer, damaged checkpoints to `damaged-step-…` and prints
            a message.

    Raises:
        CheckpointError: if all checkpoints are damaged (they are not renamed), or the newest is of another `FORMAT`.
    """
    damaged: dict[Path, CheckpointError] = {}
    for folder in reversed(list_checkpoints(run)):
        try:
            verify(folder)
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
    with safe_open(checkpoint / WEIGHTS, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    expected = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    for name in sorted(trained | found.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"The checkpoint {checkpoint} is of another model: expected {name} to be "
                f"{expected.get(name, 'absent')}, but got {found.get(name, 'nothing')}. "
                "Resume with the `model.student` of the run."
            )


def _unshared(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with copies where tied ones share memory, because safetensors refuses shared memory."""
    seen: set[int] = set()
    found = {}
    for name, weight in weights.items():
        tensor = weight.detach().contiguous()
        found[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return found


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
