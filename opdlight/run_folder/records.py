"""The files of a run folder that grow during a run, and how to cut them back to their length at a checkpoint."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from opdlight.system.files import write_text

METRICS = "metrics.csv"


class MetricsFile(Logger):
    """`metrics.csv` in the run folder: one row for each call of a log method, written at once.

    Rows are appended; for a new column the file is rewritten. An existing file is continued, where Lightning's
    CSVLogger would delete it.

    Args:
        folder: the run folder.
    """

    name = version = ""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / METRICS
        self.columns = _read(self.path)[0]

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return self.save_dir

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the hyper-parameters are in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row."""
        row = {**metrics, "step": step}
        if set(row) <= set(self.columns):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns).writerow(row)
            return
        self.columns = sorted({*self.columns, *row})
        _write(self.path, self.columns, [*_read(self.path)[1], row])


def lengths(folder: Path) -> dict[str, int]:
    """File name → length of the records in a run folder: rows for `metrics.csv`, bytes for all others."""
    grown = {path.name: path.stat().st_size for path in _growing(folder)}
    return {**grown, METRICS: len(_read(folder / METRICS)[1])}


def truncate(folder: Path, kept: Mapping[str, int]) -> None:
    """Cut the records in a run folder to the `lengths` of an earlier time; files that are not in `kept` are deleted."""
    for path in _growing(folder):
        if path.name not in kept:
            path.unlink()
        elif path.stat().st_size > kept[path.name]:
            os.truncate(path, kept[path.name])
    columns, rows = _read(folder / METRICS)
    if rows and kept.get(METRICS):
        _write(folder / METRICS, columns, rows[: kept[METRICS]])
    else:
        (folder / METRICS).unlink(missing_ok=True)


def _growing(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.jsonl"), *folder.glob("profile.csv")])


def _read(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    if not path.exists():
        return [], []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or []), list(reader)


def _write(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
