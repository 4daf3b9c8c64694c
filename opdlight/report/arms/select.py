"""Decides whether runs are compared by arm, and reads them."""

from collections.abc import Sequence
from pathlib import Path

from opdlight.report.arms.group import grouped, is_run, runs_below, several_seeds
from opdlight.report.arms.outcomes import Ran
from opdlight.report.arms.read import read_arm_run
from opdlight.report.arms.tables import has_tables, read_tables
from opdlight.system.console import track


def runs_to_compare(folders: Sequence[Path]) -> list[Ran]:
    """The runs of a comparison by arm; empty where the folders are those of runs to show one by one.

    They are compared where a folder is no run's but holds runs, or the tables of a comparison, and where some of
    several runs differ only in their seed.
    """
    below = {folder: [] if is_run(folder) else runs_below(folder) for folder in folders}
    if len(folders) == 1 and not below[folders[0]]:
        return read_tables(folders[0]) if has_tables(folders[0]) and not is_run(folders[0]) else []
    if not all(is_run(folder) or below[folder] for folder in folders):
        return []
    paths = [path for folder in folders for path in below[folder] or [folder]]
    runs = grouped([read_arm_run(path) for path in track(paths, "reading runs", log=False)])
    return runs if any(below.values()) or several_seeds(runs) else []
