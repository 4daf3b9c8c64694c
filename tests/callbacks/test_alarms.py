"""Alarms: when they ring, when they end, what they write."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from opdlight.callbacks import Alarms, Rule
from tests.callbacks.probe_results import Logged

MASS = Rule(key="coverage/student_mass/*", below=0.5, meaning="It is blind.", advice="raise loss.k.")
ERROR = Rule(key="rollout/env_error", above=0.05, meaning="Tasks break.", advice="play them.")


def steps(alarms: Alarms, *values: dict[str, float]) -> str:
    """Each dict is what a step has logged; returns what was printed."""
    text = io.StringIO()
    for step, logged in enumerate(values):
        results = SimpleNamespace(metrics=lambda on_step, logged=logged: {"callback": logged})
        trainer: Any = SimpleNamespace(
            fit_loop=SimpleNamespace(_results=results),
            is_global_zero=True,
        )
        module: Any = Logged()
        with redirect_stdout(text):
            alarms.on_train_batch_end(trainer, module, {}, None, step)
        assert module.values == {"alarms/on": len(alarms.on)}
    return text.getvalue()


def test_an_alarm_rings_once_after_patience_and_ends(tmp_path: Path) -> None:
    alarms = Alarms({"mass": MASS}, str(tmp_path), patience=2)
    key = "coverage/student_mass/sums"
    values = [0.4, 0.6, 0.4, 0.3, 0.2, 0.6, 0.1]
    printed = steps(alarms, *({key: v} for v in values))
    assert printed.count("alarm") == 1
    assert f"{key} = 0.3 is below 0.5: It is blind. Try: raise loss.k." in printed
    lines = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines()]
    start = {
        "update": 3, "key": key, "value": 0.3, "threshold": 0.5, "kind": "below", "meaning": MASS.meaning,
        "advice": MASS.advice, "until": None,
    }  # fmt: skip
    assert lines == [start, {**start, "until": 5}]


def test_a_fall_is_measured_from_the_highest_value_so_far(tmp_path: Path) -> None:
    fall = Rule(key="coverage/student_mass/*", falls=0.05, meaning="It leaves.", advice="go back.")
    alarms, key = Alarms({"fall": fall}, str(tmp_path), patience=2), "coverage/student_mass/sums"
    nan = float("nan")
    assert steps(alarms, *({key: v} for v in (nan, 0.80, 0.90, 0.86, 0.84, 0.90))) == ""  # 0.84 is alone
    resumed = Alarms({"fall": fall}, str(tmp_path), patience=2)
    resumed.load_state_dict(alarms.state_dict())
    printed = steps(resumed, {key: 0.84}, {key: 0.83}, {key: 0.95}, {key: 0.85})
    assert printed == f"alarm {key} = 0.83 has fallen from 0.9: It leaves. Try: go back.\n"
    lines = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["threshold"], line["until"]) for line in lines] == [
        ("below", pytest.approx(0.85), None), ("below", pytest.approx(0.85), 2),
    ]  # fmt: skip
    assert resumed.highest == {("fall", key): 0.95}
    old = alarms.state_dict()
    del old["highest"]
    resumed.load_state_dict(old)  # of a run of a version without falls
    assert steps(resumed, {key: 0.1}) == ""


def test_steps_without_the_metric_and_other_tasks_change_nothing(tmp_path: Path) -> None:
    alarms = Alarms({"mass": MASS, "error": ERROR}, str(tmp_path), patience=2)
    low, fine = {"coverage/student_mass/a": 0.1}, {"coverage/student_mass/b": 0.9}
    printed = steps(alarms, low, fine, low, {"rollout/env_error": 0.05})
    assert printed.count("alarm") == 1
    assert "student_mass/a" in printed


def test_not_a_number_is_bad(tmp_path: Path) -> None:
    alarms = Alarms({"error": ERROR}, str(tmp_path), patience=1)
    steps(alarms, {"rollout/env_error": float("nan")})
    (line,) = (tmp_path / "alarms.jsonl").read_text().splitlines()
    assert json.loads(line)["value"] is None


def test_a_rule_can_be_switched_off(tmp_path: Path) -> None:
    alarms = Alarms({"error": None}, str(tmp_path), patience=1)
    assert steps(alarms, {"rollout/env_error": 1.0}) == ""
    assert not (tmp_path / "alarms.jsonl").exists()


def test_what_makes_no_sense_is_refused() -> None:
    for thresholds in ({}, {"below": 1.0, "above": 2.0}, {"above": 1.0, "falls": 0.1}):
        with pytest.raises(ValueError, match="one of `below`, `above` and `falls`"):
            Rule(key="x", meaning="", advice="", **thresholds)
