"""Checkpoints of a run: folders that are written atomically, verified when loaded, and never execute code.

`checkpoints/step-00000020/` is the run after twenty steps: `weights.safetensors` (what is trained), `state.pt`
(optimizer, schedule, loops, callbacks; read by torch's weights-only loader) and `manifest.json` (size and SHA-256 of
both, and how long the records of the run folder were).
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
ASIDE = "damaged-"  # begins the name of a damaged one
LAST = "-end"  # ends the name of the checkpoint that a run writes when it is over
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
                manifest = {"updates": checkpoint.get("updates"), "records": records, "files": files}
                (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        except OSError as error:
            print(f"Checkpoint {folder} could not be written ({error}); the older ones are kept.")

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Verify, then read; tensors arrive on the CPU.

        Raises:
            CheckpointError: if a file is missing or is not what was written.
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
    """What a checkpoint says about itself.

    Raises:
        CheckpointError: if there is none, or it cannot be read.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        _ = [manifest["files"][name]["sha256"] for name in (WEIGHTS, STATE)], manifest["records"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"The checkpoint {folder} has no readable {MANIFEST} ({why}).") from error
    return manifest


def verify(folder: Path) -> None:
    """Raise CheckpointError unless every file is there with the size and the SHA-256 that the manifest names."""
    for name, expected in read_manifest(folder)["files"].items():
        if not (folder / name).is_file():
            raise CheckpointError(f"The checkpoint {folder} lacks {name}.")
        if (found := _fingerprint(folder / name)) != expected:
            raise CheckpointError(f"The checkpoint {folder} is damaged: expected {name} to be {expected}, got {found}.")


def all_of(run: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    return sorted((run / FOLDER).glob("step-*"))


def steps_of(checkpoint: Path) -> int:
    """After how many steps it was written."""
    return int(checkpoint.name.split("-")[1])


def is_last(checkpoint: Path) -> bool:
    """Whether it was written when the run was over, its last evaluation included."""
    return checkpoint.name.endswith(LAST)


def newest(run: Path, *, first: bool = True) -> Path | None:
    """The newest checkpoint of a run folder that is what was written; None if the run has written none yet.

    The `first` process sets damaged ones aside, as `damaged-step-…`, once a sound one is found, and says so.

    Raises:
        CheckpointError: if there are checkpoints, but none is sound; they are left as they are.
    """
    damaged: dict[Path, CheckpointError] = {}
    for folder in reversed(all_of(run)):
        try:
            verify(folder)
        except CheckpointError as error:
            damaged[folder] = error
            continue
        if first:
            for bad, why in damaged.items():
                aside = bad.with_name(f"{ASIDE}{bad.name}")
                shutil.rmtree(aside, ignore_errors=True)
                bad.rename(aside)
                print(f"{why} It was set aside as {aside.name}; the one before it is taken.")
        return folder
    for folder in sorted((run / FOLDER).glob(f"{ASIDE}*")):  # by a resume that found a sound one, which is gone now
        damaged[folder] = CheckpointError(f"{folder} was damaged.")
    if damaged:
        newest_one = next(iter(damaged.values()))
        raise CheckpointError(f"No checkpoint of {run} is sound, so it cannot go on; start a new run. {newest_one}")
    return None


def check_fits(checkpoint: Path, module: nn.Module) -> None:
    """Raise CheckpointError unless the checkpoint holds what `module` trains: the same names with the same shapes."""
    with safe_open(checkpoint / WEIGHTS, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    own = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    for name in sorted(trained | found.keys()):
        if found.get(name) != own.get(name):
            raise CheckpointError(
                f"The checkpoint {checkpoint} is of another model: expected {name} to be {own.get(name, 'absent')}, "
                f"but got {found.get(name, 'nothing')}. Resume with the `model.student` of the run."
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
