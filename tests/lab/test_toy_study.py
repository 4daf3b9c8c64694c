"""The toy study from the command to its tables and files."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opdlight.config import CONF, ToyConfig, compose, instantiate
from opdlight.config.help import help_text
from opdlight.errors import ConfigError
from opdlight.lab.toy.report import Rising, csv_text, table_rows
from opdlight.lab.toy.study import check_study, finite, toy, vary, verdict
from opdlight.lab.toy.training import Ends, Outcome, Setting
from opdlight.lab.toy.walk import WALKS
from opdlight.metrics.intervals import Mean
from tests.forked import command
from tests.lab.test_toy import SMALL


def made_up(variance: Tensor, distance: list[float]) -> Outcome:
    """Two seeds × two γ; teachers end 0.1 from the target."""
    ends = Ends(positions=torch.zeros(4, 1, 2), distance=torch.tensor(distance), reverse_kl=torch.ones(4))
    teacher = Ends(positions=torch.zeros(2, 1, 2), distance=torch.full((2,), 0.1), reverse_kl=torch.zeros(2))
    runs = [(7, 0.0), (7, 1.0), (8, 0.0), (8, 1.0)]
    tasks = [w.name for w in WALKS]
    return Outcome(
        runs=runs,
        variance=variance,
        reverse_kl=torch.arange(20.0).reshape(5, 4),
        distance=torch.arange(20.0).reshape(5, 4),
        students=dict.fromkeys(tasks, ends),
        teachers=dict.fromkeys(tasks, teacher),
    )


def test_the_table_averages_logs_over_seeds_and_counts_who_is_off_target() -> None:
    variance = torch.tensor([[1.0, 100.0, 10.0, 100.0], [1.0, 1.0, 10.0, 100.0]]).double()
    outcome = made_up(variance, [0.2, 0.5, 0.7, math.nan])
    zero, one = table_rows(outcome)
    assert (zero.variance.mean, one.variance.mean) == (0.5, 1.5)
    assert (zero.ratio.mean, zero.ratio.half, one.ratio.mean, one.ratio.half) == (0, 0, 1, 0)
    assert (zero.off_target, one.off_target, one.walkers) == (2, 2, 4)  # 0.7 > 0.1 + 0.5; not a number is off
    assert one.distance["left"].not_finite == 1


def test_an_iteration_is_off_target_by_the_teacher_of_its_task_and_seed() -> None:
    ends = made_up(torch.ones(5, 4), [0.0] * 4)
    left, right = (replace(ends.teachers["left"], distance=torch.tensor(d)) for d in ([0.0, 1.0], [2.0, 3.0]))
    outcome = replace(
        ends,
        teachers={"left": left, "right": right},  # on target up to 0.5 and 1.5 (left), 2.5 and 3.5 (right) by seed
        distance=torch.tensor([[0.4, 0.6, 1.4, 1.6], [2.4, 2.6, 3.4, 3.6]] * 2 + [[0.4, 0.6, 1.6, 1.4]]),
    )
    zero, one = table_rows(outcome)  # columns: seed × γ
    assert zero.iterations_off == Mean.of([0.0, 0.2])
    assert one.iterations_off == Mean.of([1.0, 0.8])


def test_a_variance_rises_step_by_step_or_only_from_end_to_end() -> None:
    variance = torch.tensor([[1.0, 100.0, 10.0, 100.0]]).double()
    assert Rising.of(made_up(variance, [0.0] * 4)) == Rising(every_step=2, ends=2, seeds=2)
    assert Rising.of(made_up(variance.flip(1), [0.0] * 4)) == Rising(every_step=0, ends=0, seeds=2)
    lost = torch.tensor([[1.0, math.nan, math.inf, 100.0]]).double()
    assert Rising.of(made_up(lost, [0.0] * 4)) == Rising(every_step=1, ends=1, seeds=2)
    runs = [(7, 1.0), (7, 0.0), (7, 0.5), (7, 0.75)]  # not in ascending order
    dented = replace(made_up(torch.tensor([[9.0, 1.0, 3.0, 2.0]]).double(), [0.0] * 4), runs=runs)
    assert Rising.of(dented) == Rising(every_step=0, ends=1, seeds=1)
    assert verdict([dented, made_up(variance, [0.0] * 4)]) == (
        "Gradient variance, 2 differing settings × seeds: larger at the highest γ than at the lowest in 3 of 3, "
        "larger with every step of γ in 2 of 3."
    )


def test_a_row_of_the_csv_holds_its_own_task_and_window() -> None:
    variance = torch.tensor([[1.0], [10.0], [100.0], [1000.0], [1e6]]).expand(5, 4)
    rows = list(csv.DictReader(csv_text({"main": made_up(variance, [0.0] * 4)}, window=4).splitlines()))
    assert len(rows) == 4 * 3  # the last window has an iteration of the left task only
    first, last, right = rows[:3]
    assert [first[k] for k in ("setting", "seed", "gamma", "task")] == ["main", "7", "0.0", "left"]
    assert [first[k] for k in ("first_iteration", "last_iteration", "variance", "variance_max")] == [
        "1",
        "4",
        "10",
        "100",
    ]
    assert (first["reverse_kl"], right["reverse_kl"]) == ("4", "8")
    assert (last["first_iteration"], last["variance"]) == ("5", "1e+06")
    assert (right["task"], right["variance"]) == ("right", "100")
    odd = list(csv.DictReader(csv_text({"main": made_up(variance, [0.0] * 4)}, window=3).splitlines()))
    assert [(r["task"], r["first_iteration"], r["variance"]) for r in odd[:4]] == [
        ("left", "1", "10"),  # iterations 1 and 3
        ("left", "4", "1e+06"),
        ("right", "1", "10"),
        ("right", "4", "1000"),
    ]


TINY = [
    "iterations=5",
    "window=2",
    "seeds=[1,2]",
    "setting.teacher_iterations=2",
    "setting.horizon=3",
    "setting.width=5",
    "sensitivity.iterations=3",
]


def test_a_tiny_study_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = compose("toy", ToyConfig, [*TINY, f"run_dir={tmp_path / 'run'}"])
    cfg.sensitivity.settings = {"horizon 2": {"horizon": 2}, "tanh": {"activation": "tanh"}}
    found = toy(cfg)
    assert list(found) == [f"variance/gamma={g}" for g in ("0", "0.25", "0.5", "0.75", "1")]
    folder = tmp_path / "run"
    for name in ("variance.png", "learning.png", "visits.png"):
        assert (folder / name).stat().st_size > 10_000, name
    assert (folder / "config.yaml").is_file() and (folder / "versions.json").is_file()
    rows = list(csv.DictReader((folder / "toy.csv").read_text().splitlines()))
    passes = {name: sum(row["setting"] == name for row in rows) for name in {row["setting"] for row in rows}}
    assert passes == {
        "main": 2 * 5 * 5,  # seeds × γ × (left 3 windows, right 2)
        "horizon 2": 2 * 3 * 3,
        "tanh": 2 * 3 * 3,
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["settings"]["main"]["gammas"][4]["variance"]["mean"] == found["variance/gamma=1"]
    assert set(summary["seconds"]) == set(summary["settings"]) == set(passes)
    assert [p.name for p in folder.glob(".*")] == [".lock"] and not list(folder.glob("*.tmp"))
    shown = capsys.readouterr().out
    for text in ("interval over 2 seeds", "sensitivity, 3 iterations", "horizon 2", "teacher", "run folder: "):
        assert text in shown, text


def test_a_study_without_sensitivity_or_the_papers_gammas(tmp_path: Path) -> None:
    options = ["sensitivity=null", "gammas=[0.3]", "seeds=[1]", f"run_dir={tmp_path / 'run'}"]
    assert list(toy(compose("toy", ToyConfig, [*TINY[:-1], *options]))) == ["variance/gamma=0.3"]


def test_every_shipped_variant_changes_the_setting() -> None:
    cfg = compose("toy", ToyConfig)
    check_study(cfg)
    setting: Setting = instantiate(cfg.setting)
    varied = {name: vary(setting, name, dict(changes)) for name, changes in cfg.sensitivity.settings.items()}
    assert len(set(varied.values())) == len(varied) >= 5
    assert [name for name, v in varied.items() if v == setting] == ["unchanged"]


def test_what_json_cannot_write_becomes_null() -> None:
    assert finite({"a": [1.0, math.nan, {"b": math.inf}], "c": "d"}) == {"a": [1.0, None, {"b": None}], "c": "d"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gammas=[0,1.5]", "Expected `gammas[1]` to be float in [0, 1], but got 1.5 (float)."),
        ("gammas=[0.5,0.5]", "Expected `gammas` to be distinct numbers, but got [0.5, 0.5]."),
        ("gammas=[]", "Expected `gammas` to be distinct numbers, but got []."),
        ("sensitivity.gammas=[1]", "Expected `sensitivity.gammas` to be at least two numbers, but got [1]."),
        ("seeds=[1,1]", "Expected `seeds` to be distinct integers, but got [1, 1]."),
        ("iterations=1", "Expected `iterations` to be int ≥ 2, but got 1 (int)."),
        ("window=1", "Expected `window` to be int ≥ 2, but got 1 (int)."),
        ("iteration=5", "Unknown key `iteration`. Did you mean `iterations`?"),
        ("setting.activation=gelu", "Expected `setting.activation` to be one of 'relu', 'tanh', but got 'gelu' (str)."),
        (
            "+sensitivity.settings.x.widht=3",
            "Unknown key `sensitivity.settings.x.widht`. Did you mean `sensitivity.settings.x.width`?",
        ),
        (
            "+sensitivity.settings.x.width=wide",
            "Expected `sensitivity.settings.x.width` to be int ≥ 1, but got 'wide' (str).",
        ),
        ("+sensitivity.settings.x.walks=7", "Cannot build `sensitivity.settings.x`: Expected `setting.walks` to be a"),
        ("+sensitivity.settings.main={}", "Expected `sensitivity.settings` to have no entry `main`"),
    ],
)
def test_a_wrong_option_is_one_clear_error(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        toy(compose("toy", ToyConfig, [*TINY, override, f"run_dir={tmp_path / 'run'}"]))
    assert str(error.value).startswith(message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "Expected `setting.horizon` to be at least 1, but got 0."),
        ({"micro_batches": 1}, "Expected `setting.micro_batches` to be at least 2, but got 1."),
        ({"walks": 6}, "Expected `setting.walks` to be a multiple of micro_batches (4), but got 6."),
        ({"sigma_min": 0.0}, "Expected `setting.sigma_min` to be above 0, but got 0.0."),
        ({"step_cost": -1.0}, "Expected `setting.step_cost` to be at least 0, but got -1.0."),
    ],
)
def test_a_setting_refuses_what_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (compared below)
        replace(SMALL, **change)
    assert str(error.value) == message


def test_the_command_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    done = command("opdlight.lab.toy", "setting.walks=65", f"run_dir={tmp_path}", f"hydra.run.dir={tmp_path}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Cannot build `setting`: ") and done.stderr.count("\n") == 1


def test_help_names_the_module_and_leaves_out_the_groups_that_there_are_not() -> None:
    text = help_text(CONF, "toy", module="opdlight.lab.toy")
    assert "Usage: python -m opdlight.lab.toy [key=value]..." in text
    assert "Groups" not in text
    assert "setting.horizon=20" in text
