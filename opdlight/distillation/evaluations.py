"""How the student does on held-out episodes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from opdlight.metrics.success import HeldOutOutcomes, Result
from opdlight.types import Trajectory


class Evaluations:
    """Results of the validation loops, by task: `before` the first update, and the `last`.

    `episodes` are those of the last one: task → `outcome_rows` of the trajectories of all ranks.
    """

    def __init__(self) -> None:
        self.before: dict[str, Result] = {}
        self.last: dict[str, Result] = {}
        self.episodes: dict[str, Tensor] = {}

    def begin(self) -> None:
        """A new step, in which nothing has been evaluated yet."""
        self.last, self.episodes = {}, {}

    def add(self, task: str, trajectories: Sequence[Trajectory], outcomes: HeldOutOutcomes) -> None:
        """The result of one task from this rank's `trajectories`; `outcomes` gathers those of all ranks."""
        outcomes.reset()
        outcomes.update(trajectories)
        self.episodes[task] = outcomes.compute()
        self.last[task] = Result.of_rows(self.episodes[task])

    def keep_as_before(self) -> None:
        """The last results are those before the first update."""
        self.before = self.last
        self.begin()

    def state_dict(self) -> dict[str, Any]:
        """Both, as plain values."""
        return {
            name: {task: asdict(result) for task, result in results.items()}
            for name, results in (("before", self.before), ("last", self.last))
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        self.before, self.last = (
            {task: Result(**result) for task, result in state[name].items()} for name in ("before", "last")
        )
