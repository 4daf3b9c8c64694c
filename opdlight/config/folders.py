"""Where a run goes: a folder that no other run has, in a sweep one whose name says what is swept."""

import fcntl
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from opdlight.config.resume import quoted
from opdlight.errors import ConfigError

LONGEST = 80  # characters of a name that is made of overrides
LOCK = ".lock"  # in the folder of a run that is going on
SWEEP = "multirun.yaml"  # what Hydra writes into the folder of a sweep
# what a run writes before it begins to roll out and train; of a sweep, what Hydra does
DESCRIPTION = (LOCK, "overrides.json", "config.yaml", "versions.json", "events.out.tfevents.*", SWEEP)


def folder_overrides(full: DictConfig, overrides: Sequence[str], *, multirun: bool) -> tuple[list[str], Path | None]:
    """Make the run folder, and put it into the overrides for Hydra, in place of `run_dir=`.

    A folder that the command line names is used as it is. Otherwise a new one is named by the clock, with -2, -3, …
    appended if there is one of that name already. A command that has no run folder gets its overrides back.

    Args:
        full: the composed config, that of Hydra included.
        overrides: of the command line.
        multirun: a sweep, whose folder holds one for each job.

    Returns:
        The overrides, and the folder if there was none before.

    Raises:
        ConfigError: if the folder cannot be made, or several processes would make one each.
    """
    if full.hydra.run.dir == ".":
        return list(overrides), None
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    parsed = list(zip(overrides, _parsed(overrides), strict=True))
    kept = [text for text, o in parsed if o.key_or_group != "run_dir"]
    given = [
        "" if o.value() is None else str(o.value())
        for name in (key, "run_dir")
        for _, o in parsed
        if o.key_or_group == name
    ]
    is_new = not (given and Path(given[-1]).exists())
    if given:
        folder = make_folder(given[-1])
    elif _started_from_outside() or OmegaConf.select(full, "trainer.num_nodes", default=1) != 1:
        raise ConfigError.wrong("run_dir", expected="one folder for all the processes that were started", got="none")
    else:
        swept = "".join(f"-{_safe(_last(o))}" for _, o in parsed if o.is_sweep_override()) if multirun else ""
        folder = make_new_folder(Path(str(OmegaConf.select(full, key)) + swept[:LONGEST]))
    found = [*kept, quoted(key, str(folder))]
    if multirun and not any(o.key_or_group == "hydra.sweep.subdir" for _, o in parsed):
        keys = {o.key_or_group for _, o in parsed if o.is_sweep_override()}
        OmegaConf.register_new_resolver("swept", lambda texts: job_name(list(texts), keys), replace=True)
        found.append("hydra.sweep.subdir='${hydra.job.num}${swept:${hydra.overrides.task}}'")
    return found, folder if is_new else None


def job_name(overrides: Sequence[str], swept: set[str]) -> str:
    """The end of the folder's name of a sweep's job: its overrides of the `swept` keys, in plain characters.

    >>> job_name(["task=sums", "optimizer.lr=0.01", "loss=topk_rkl"], {"optimizer.lr", "loss"})
    '_lr-0.01_loss-topk_rkl'
    """
    own = [o for o in _parsed(overrides) if o.key_or_group in swept]
    return "".join(f"_{_safe(_last(o))}-{_safe(o.get_value_element_as_str())}" for o in own)[:LONGEST]


def make_folder(folder: str | Path) -> Path:
    """Make the folder if it is not there; returns its absolute path.

    Raises:
        ConfigError: if it cannot be made.
    """
    if not str(folder).strip():  # it would be the current folder
        raise ConfigError.wrong("run_dir", expected="the path of a folder", got=str(folder))
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, error) from error
    return Path(folder).absolute()


def make_new_folder(folder: Path) -> Path:
    """Make a new folder of this name or, if another run has it already, of this name with -2, -3 and so on.

    Raises:
        ConfigError: if it cannot be made.
    """
    make_folder(folder.parent)
    for number in count(1):
        own = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            own.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise _refused(own, error) from error
        return own.absolute()
    raise AssertionError("numbers do not end")


def remove_refused(folder: Path) -> None:
    """Remove the folder of a run that was refused before it began, or of such a sweep, if all its jobs were refused.

    Only folders that hold nothing but `DESCRIPTION`, and that no other process has locked, are removed: a run that has
    begun keeps all that it wrote. One that cannot be removed stays.
    """
    with suppress(OSError):
        if (folder / SWEEP).is_file():
            for job in [file for file in folder.iterdir() if file.is_dir() and not file.is_symlink()]:
                with suppress(OSError):
                    _remove_description(job)
        _remove_description(folder)


def _remove_description(folder: Path) -> None:
    """Remove the folder of one run, unless it holds more than `DESCRIPTION` or is locked."""
    names = [file.name for file in folder.iterdir()]
    if all(any(fnmatch(name, known) for known in DESCRIPTION) for name in names) and not is_locked(folder / LOCK):
        shutil.rmtree(folder)


def is_locked(file: Path) -> bool:
    """Whether another process holds this lock."""
    if not file.exists():
        return False
    with file.open("rb") as opened:  # only read: the folder may be another user's
        try:
            fcntl.lockf(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _refused(folder: str | Path, error: OSError) -> ConfigError:
    expected = f"a folder that can be written ({error.strerror})"
    return ConfigError.wrong("run_dir", expected=expected, got=str(folder))


def _started_from_outside() -> bool:
    """Did torchrun or srun start this process as one of several? Each would make a folder of its own."""
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    return torchrun or ("SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1")


def _parsed(overrides: Sequence[str]) -> list[Override]:
    found: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    return found


def _last(override: Any) -> str:
    return str(override.key_or_group).rpartition(".")[2]


def _safe(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")
