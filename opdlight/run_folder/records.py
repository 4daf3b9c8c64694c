"""The files of a run folder that grow while it runs: how long they were at a checkpoint, and back to that."""

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
    """`metrics.csv` in the run folder: one row each time that something is logged, on disk at once.

    Rows are appended; when a column is new, a file with it takes the place of the old one. A file that is there already
    is continued (Lightning's CSVLogger would delete it).

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
        """They are in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row."""
        row = {**metrics, "step": step}
        if set(row) <= set(self.columns):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns).writerow(row)
            return
        self.columns = sorted({*self.columns, *row})
        _write(self.path, self.columns, [*_read(self.path)[1], row])


def lengths(folder: Path) -> dict[str, int]:
    """How long the records of a run folder are: bytes of those that only grow, rows of `metrics.csv`."""
    grown = {path.name: path.stat().st_size for path in _growing(folder)}
    return {**grown, METRICS: len(_read(folder / METRICS)[1])}


def rewind(folder: Path, kept: Mapping[str, int]) -> None:
    """Cut the records to the lengths `kept`; what it does not name goes. Done twice, it is the same."""
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
