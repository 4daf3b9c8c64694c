"""Alarms: thresholds on logged metrics, with what a crossing means and what to try."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import lightning as L

from opdlight.bounds import FiniteFloat, PositiveInt
from opdlight.system.console import say
from opdlight.system.lightning_internals import logged_in_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An alarm: `key` stays `below` or `above` a threshold.

    Args:
        key: of the metric; `*` stands for anything, such as the task.
        below: values under it are bad.
        above: values over it are bad.
        meaning: what it means, one sentence.
        advice: what to try.

    Raises:
        ValueError: unless exactly one threshold is given.
    """

    key: str
    meaning: str
    advice: str
    below: FiniteFloat | None = None
    above: FiniteFloat | None = None

    def __post_init__(self) -> None:
        if (self.below is None) == (self.above is None):
            raise ValueError(f"Expected an alarm on {self.key!r} to have either `below` or `above`.")

    def broken(self, value: float) -> bool:
        """Whether the value is on the bad side of the threshold; NaN is."""
        return not (value >= self.below if self.below is not None else value <= self.above)  # type: ignore[operator]


class Alarms(L.Callback):
    """Prints an alarm when a metric has been on the bad side for `patience` of its values in a row; logs `alarms/on`.

    `alarms.jsonl` in the run folder gets a line when an alarm starts and one when it ends. Must come after the
    callbacks whose metrics it reads.

    Args:
        rules: name → rule, or null to switch it off.
        folder: the run folder.
        patience: values in a row; a step that does not log the metric changes nothing.
    """

    def __init__(self, rules: dict[str, Rule | None], folder: str, patience: PositiveInt = 3) -> None:
        self.rules = {name: rule for name, rule in rules.items() if rule is not None}
        self.path, self.patience = Path(folder) / "alarms.jsonl", patience
        self.count: dict[tuple[str, str], int] = {}  # rule and key → bad values in a row
        self.on: dict[tuple[str, str], dict[str, Any]] = {}

    def state_dict(self) -> dict[str, Any]:
        """The counts, and the alarms that are on."""
        return {"count": dict(self.count), "on": dict(self.on)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.count, self.on = dict(state_dict["count"]), dict(state_dict["on"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare what this step has logged with the rules; record and print alarms that begin or end."""
        logged = logged_in_step(trainer)
        lines: list[dict[str, Any]] = []
        for name, rule in self.rules.items():
            for key, value in ((k, v) for k, v in logged.items() if fnmatchcase(k, rule.key)):
                lines += self._judge(name, rule, key, value, batch_idx)
        pl_module.log("alarms/on", float(len(self.on)))
        if lines and trainer.is_global_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def _judge(self, name: str, rule: Rule, key: str, value: float, update: int) -> Sequence[dict[str, Any]]:
        place = name, key
        if not rule.broken(value):
            self.count[place] = 0
            ended = self.on.pop(place, None)
            return [] if ended is None else [{**ended, "until": update}]
        self.count[place] = self.count.get(place, 0) + 1
        if self.count[place] < self.patience or place in self.on:
            return []
        kind, threshold = ("below", rule.below) if rule.below is not None else ("above", rule.above)
        alarm = {"update": update, "key": key, "value": value if value == value else None, "threshold": threshold,
                 "kind": kind, "meaning": rule.meaning, "advice": rule.advice, "until": None}  # fmt: skip
        self.on[place] = alarm
        text = f"alarm {key} = {value:.3g} is {kind} {threshold:g}: {rule.meaning} Try: {rule.advice}"
        say(text, style="yellow")
        return [alarm]
