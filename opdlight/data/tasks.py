"""Tasks, their mixture, and the on-policy data set: a batch is a list of rollout requests, not of tokens."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import opdlight.envs  # noqa: F401  (registers the environments)
from opdlight.bounds import NonNegativeFloat, PositiveFloat, PositiveInt
from opdlight.config.environments import check_env
from opdlight.envs.base import TextEnv
from opdlight.envs.wrapped import make_text_env
from opdlight.errors import ConfigError

REMEMBERED = 4  # places in the dealing of units to tasks from which it goes on
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task: its environment, its teacher and its limits."""

    env: dict[str, Any]  # Gymnasium id and the environment's arguments
    teacher: str | None = None  # model folder, Hub name, or lab/<name>; a task of weight 0 needs none
    teacher_chat_template: dict[str, Any] | None = None  # what the teacher's template is given, as enable_thinking
    weight: NonNegativeFloat = 1.0  # share of the training batches (alternate) or of each batch (mixed); 0: evaluated
    turn_tokens: PositiveInt = 256  # longest completion of one turn
    trajectory_tokens: PositiveInt = 2048  # longest context, prompts included
    env_seconds: PositiveFloat = 300.0  # longest reset or step of the environment; after it comes env_error
    episodes: PositiveInt | None = 128  # held-out episodes of one evaluation; null: every held-out row once
    samples: PositiveInt = 1  # attempts at each of them

    def make_env(self) -> TextEnv:
        """A new environment, inside the wrappers of its registration."""
        arguments = dict(self.env)
        return make_text_env(arguments.pop("id"), **arguments)

    def sizes(self) -> tuple[int | None, int | None]:
        """How many training and held-out episodes the environment has; None: a new one for every seed."""
        env = self.make_env()
        env.close()
        return env.training_episodes, env.held_out_episodes


class TaskMixture:
    """Several tasks by weight.

    schedule="alternate": each batch holds one task and the tasks take turns in proportion to their weights (the paper's
    multi-task setting). schedule="mixed": each batch holds every task in proportion to its weight. Tasks of weight 0
    are only evaluated.
    """

    def __init__(self, tasks: Mapping[str, Task], schedule: Literal["alternate", "mixed"] = "alternate") -> None:
        if not tasks:
            raise ConfigError.wrong("task.tasks", expected="at least one task", got=dict(tasks))
        for name, task in tasks.items():
            if task.weight > 0 and task.teacher is None:
                expected = "a model (or set the task's `weight` to 0)"
                raise ConfigError.wrong(f"task.tasks.{name}.teacher", expected=expected, got=None)
        self.tasks = dict(tasks)
        self.schedule = schedule
        weights = {name: Fraction(str(task.weight)) for name, task in tasks.items() if task.weight > 0}
        whole = math.lcm(*(weight.denominator for weight in weights.values()))
        parts = [int(weight * whole) for weight in weights.values()]
        self._parts = dict(zip(weights, (part // math.gcd(*parts) for part in parts), strict=True))
        self._dealt = {0: tuple(0 for _ in parts)}  # units → what each task had got, the last ones asked for

    @property
    def names(self) -> tuple[str, ...]:
        """Task names in the order of the config."""
        return tuple(self.tasks)

    @property
    def teachers(self) -> dict[str, str]:
        """The teacher of every task that is trained on."""
        return {name: task.teacher for name, task in self.tasks.items() if task.weight > 0 and task.teacher is not None}

    def check_envs(self) -> None:
        """Make one environment of each task, so that what it refuses is told before models are loaded.

        Raises:
            ConfigError: naming the key. MissingDependencyError: if the environment's package is not installed.
        """
        for name, task in self.tasks.items():
            key = f"task.tasks.{name}.env"
            check_env(key, task.env)
            try:
                task.make_env().close()
            except ConfigError as error:
                raise ConfigError(f"`{key}`: {error}") from error

    def shares(self, step: int, groups: int) -> dict[str, int]:
        """How many of the `groups` of batch `step` each task gets; largest-remainder shares over all batches so far."""
        before, after = self.dealt(step, groups), self.dealt(step + 1, groups)
        return {name: after[name] - before[name] for name in before if after[name] > before[name]}

    def dealt(self, step: int, groups: int) -> dict[str, int]:
        """How many groups each task has got in all batches before `step`."""
        if self.schedule == "mixed":
            return self._allot(step * groups)
        return {name: count * groups for name, count in self._allot(step).items()}

    def _allot(self, units: int) -> dict[str, int]:
        """Deal `units` one by one to the task that is furthest below its share; a function of `units` alone.

        After as many units as the smallest whole-number weights add up to, every task has just its share and the order
        begins again. Where that is many (a weight such as 0.123456), the dealing goes on from where it last stopped.
        """
        parts = list(self._parts.values())
        period = sum(parts)
        rounds, rest = divmod(units, period)
        start = max(n for n in self._dealt if n <= rest)
        counts = list(self._dealt[start])
        for n in range(start + 1, rest + 1):
            counts[max(range(len(parts)), key=lambda k: parts[k] * n - counts[k] * period)] += 1
        self._dealt[rest] = tuple(counts)
        while len(self._dealt) > REMEMBERED:
            del self._dealt[sorted(self._dealt)[1]]  # 0 stays
        return {name: rounds * part + count for name, part, count in zip(self._parts, parts, counts, strict=True)}
