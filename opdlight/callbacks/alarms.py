"""Alarms: thresholds on logged metrics, with what a crossing means and what to try."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import lightning as L

from opdlight.bounds import FiniteFloat, PositiveFloat, PositiveInt
from opdlight.system.console import say
from opdlight.system.lightning_internals import logged_in_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An alarm: `key` stays `below` or `above` a threshold, or falls from its highest value.

    Args:
        key: of the metric; `*` stands for anything, such as the task.
        below: values under it are bad.
        above: values over it are bad.
        falls: values that are so far below the highest one of the run so far are bad.
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
    falls: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.below, self.above, self.falls)) != 1:
            raise ValueError(f"Expected an alarm on {self.key!r} to have one of `below`, `above` and `falls`.")

    def threshold(self, highest: float) -> float:
        """Where the bad side begins, if the highest value so far is `highest`."""
        if self.falls is not None:
            return highest - self.falls
        return self.below if self.below is not None else self.above  # type: ignore[return-value]

    def broken(self, value: float, threshold: float) -> bool:
        """Whether the value is on the bad side of the threshold; NaN is."""
        return not (value <= threshold if self.above is not None else value >= threshold)


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
        self.highest: dict[tuple[str, str], float] = {}  # rule and key → highest value so far
        self.on: dict[tuple[str, str], dict[str, Any]] = {}

    def state_dict(self) -> dict[str, Any]:
        """The counts, the highest values, and the alarms that are on."""
        return {"count": dict(self.count), "highest": dict(self.highest), "on": dict(self.on)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.count, self.on = dict(state_dict["count"]), dict(state_dict["on"])
        self.highest = dict(state_dict.get("highest", {}))  # runs of older versions have none

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
        if value == value:  # not NaN
            self.highest[place] = max(value, self.highest.get(place, value))
        highest = self.highest.get(place, value)
        threshold = rule.threshold(highest)
        if not rule.broken(value, threshold):
            self.count[place] = 0
            ended = self.on.pop(place, None)
            return [] if ended is None else [{**ended, "until": update}]
        self.count[place] = self.count.get(place, 0) + 1
        if self.count[place] < self.patience or place in self.on:
            return []
        kind = "below" if rule.above is None else "above"
        alarm = {"update": update, "key": key, "value": value if value == value else None, "threshold": threshold,
                 "kind": kind, "meaning": rule.meaning, "advice": rule.advice, "until": None}  # fmt: skip
        self.on[place] = alarm
        crossed = f"is {kind} {threshold:g}" if rule.falls is None else f"has fallen from {highest:.3g}"
        text = f"alarm {key} = {value:.3g} {crossed}: {rule.meaning} Try: {rule.advice}"
        say(text, style="yellow")
        return [alarm]
