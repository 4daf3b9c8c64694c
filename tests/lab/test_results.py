"""The tables of the lab's README are those of the results beside it, which anyone can compute again."""

import csv
import math
import re
from pathlib import Path

import pytest

from opdlight.metrics.intervals import Interval
from opdlight.report.arms.compare import ArmRow, compare
from opdlight.report.arms.tables import arms_csv, read_tables

ROOT = Path(__file__).parents[2]
README = (ROOT / "opdlight" / "lab" / "README.md").read_text()
LAB = ROOT / "docs" / "tables" / "lab"


def cells(first: str) -> list[list[str]]:
    """The rows of the README's tables whose first cell matches, without bold."""
    lines = [line.strip("| \n").replace("**", "").split(" | ") for line in README.splitlines() if line.startswith("| ")]
    return [line for line in lines if re.fullmatch(first, line[0])]


def number(value: float, digits: int, *, signed: bool) -> str:
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def written(found: Interval, scale: float = 100, digits: int = 1, *, signed: bool = False) -> str:
    if math.isnan(found.value):
        return "–"
    low = found.low if signed else max(found.low, 0.0)
    value, low, high = (number(scale * v, digits, signed=signed) for v in (found.value, low, found.high))
    return f"{value} [{low}, {high}]"


def row_of(row: ArmRow) -> list[str]:
    half = f"{row.half_gap.mean / 1000:.1f}" if row.half_gap else f"{row.reached} of {row.seeds} get there"
    assert row.snr is not None
    success = [written(row.after), written(row.difference, signed=True), written(row.area_difference, signed=True)]
    fall, snr = number(100 * row.drop.mean, 1, signed=False), number(row.snr.mean, 2, signed=False)
    return [f"`{row.arm}`", *success, written(row.spread), fall, half, snr]


def test_the_table_of_arms_is_that_of_the_episodes() -> None:
    parts = compare(read_tables(LAB), "lsm")
    made, kept = (
        list(csv.reader(text.splitlines()))
        for text in (arms_csv([row for part in parts for row in part.rows]), (LAB / "arms.csv").read_text())
    )
    assert [row[:3] for row in made] == [row[:3] for row in kept] and made[0] == kept[0]
    for row, other in zip(made[1:], kept[1:], strict=True):  # another processor may sum in another order
        assert [float(v or "nan") for v in row[3:]] == pytest.approx(
            [float(v or "nan") for v in other[3:]], nan_ok=True
        )
    expected = [row_of(row) for part in parts for row in part.rows]
    found = [row for row in cells(r"`\w[\w.]*`") if len(row) == 8]
    assert found == expected


def test_early_signs_are_those_of_their_file() -> None:
    with (LAB / "signs.csv").open(newline="") as file:
        signs = {(row["figure"], row["kind"]): row for row in csv.DictReader(file) if row["setting"] == "sums"}
    found = [row for row in cells(r"`\w+/\w+(/sums)?`(, change)?") if len(row) == 3]
    assert len(found) > 20
    for name, *values in found:
        sign = signs[name.split("`")[1], "change" if "change" in name else "level"]
        for value, column in zip(values, ("strength", "beyond"), strict=True):
            ends = [float(sign[f"{column}{end}"] or "nan") for end in ("", "_low", "_high")]
            assert value == written(Interval(value=ends[0], low=ends[1], high=ends[2]), 1, 2, signed=True), name


@pytest.mark.parametrize("baseline", ["lsm", "sampled_token", "sampled_token_top_p"])
def test_differences_in_the_text_are_among_those_of_some_baseline(baseline: str) -> None:
    rows = [row for part in compare(read_tables(LAB), baseline) for row in part.rows]
    known = {written(d, signed=True) for row in rows for d in (row.difference, row.area_difference)}
    named = {"lsm": "−15.0 [−20.4, −9.6]", "sampled_token": "+8.8 [+4.1, +13.4]",
             "sampled_token_top_p": "−9.6 [−14.6, −4.6]"}  # fmt: skip
    assert named[baseline] in README and named[baseline] in known
