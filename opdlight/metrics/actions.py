"""Shares of admissible and of wasted actions, from what environments of several turns count (`envs/actions.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from opdlight.envs.actions import ADMISSIBLE, INADMISSIBLE, UNPARSABLE, WASTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Actions:
    """Actions that an environment has judged: none of tasks of one turn, nor an answer that it never received.

    An answer that was cut at the end of the context, or at which the environment raised, was not judged.

    >>> counted = Actions.of({"admissible_actions": 7, "inadmissible_actions": 2, "unparsable_actions": 1})
    >>> counted.judged, counted.admissible, counted.wasted
    (10, 7, 3)
    """

    judged: int
    admissible: int
    wasted: int  # unparsable, inadmissible, or admissible without any effect

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> Self:
        """From the counters of a turn or an episode."""
        if ADMISSIBLE not in metrics:  # without them all, nobody knows how many actions there were
            return cls(judged=0, admissible=0, wasted=0)
        judged, wasted = (
            sum(round(metrics.get(name, 0.0)) for name in names)
            for names in ((ADMISSIBLE, INADMISSIBLE, UNPARSABLE), WASTED)
        )
        return cls(judged=judged, admissible=round(metrics[ADMISSIBLE]), wasted=wasted)
