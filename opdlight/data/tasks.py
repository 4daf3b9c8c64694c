"""A task (environment, teacher and limits), and the mixture of tasks that a run trains on."""

import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import opdlight.envs  # noqa: F401  (registers the environments)
from opdlight.bounds import NonNegativeFloat, PositiveFloat, PositiveInt
from opdlight.config.environments import check_env
from opdlight.envs.base import TextEnv
from opdlight.envs.wrapped import make_text_env
from opdlight.errors import ConfigError

REMEMBERED = 4  # intermediate results of `TaskMixture._allot` that are kept, to continue from
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task: its environment, its teacher and its limits.

    Args:
        env: Gymnasium id and the environment's arguments, `{"id": …, …}`; for an environment that is no TextEnv its
            `adapter` (`opdlight.envs.adapter.Adapter`) beside them.
        teacher: model folder, Hub name, or lab/<name>; a task of weight 0 needs none.
        teacher_chat_template: arguments of the teacher's template, such as enable_thinking.
        weight: share of the training batches (schedule `alternate`) or of each batch (`mixed`); 0: only evaluated.
        turn_tokens: longest completion of one turn, in tokens.
        trajectory_tokens: longest context, prompts included, in tokens.
        env_seconds: longest reset or step of the environment, in seconds; a longer one ends as `env_error`.
        episodes: held-out episodes of one evaluation; None: every held-out row once.
        samples: attempts at each of them.
    """

    env: dict[str, Any]
    teacher: str | None = None
    teacher_chat_template: dict[str, Any] | None = None
    weight: NonNegativeFloat = 1.0
    turn_tokens: PositiveInt = 256
    trajectory_tokens: PositiveInt = 2048
    env_seconds: PositiveFloat = 300.0
    episodes: PositiveInt | None = 128
    samples: PositiveInt = 1

    def make_env(self) -> TextEnv:
        """A new environment with the wrappers of its registration."""
        arguments = dict(self.env)
        return make_text_env(arguments.pop("id"), **arguments)

    def sizes(self) -> tuple[int | None, int | None]:
        """The numbers of training and held-out episodes of the environment; None where every seed is a new episode."""
        env = self.make_env()
        env.close()
        return env.training_episodes, env.held_out_episodes


def make_task_env(tasks: Mapping[str, Task], name: str) -> TextEnv:
    """A new environment of the task `name`; a function of the module, so that another process can be sent it."""
    return tasks[name].make_env()


class TaskMixture:
    """Several tasks, which share the training batches in proportion to their weights.

    Args:
        tasks: name → task. Tasks of weight 0 are only evaluated.
        schedule: "alternate": each batch consists of one task, and the tasks take turns (the paper's multi-task
            setting). "mixed": each batch consists of all tasks.

    Raises:
        ConfigError: without a task, or if a task that is trained on has no teacher.
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
        scale = math.lcm(*(weight.denominator for weight in weights.values()))
        parts = [int(weight * scale) for weight in weights.values()]
        self._parts = dict(zip(weights, (part // math.gcd(*parts) for part in parts), strict=True))
        self._allotted = {0: tuple(0 for _ in parts)}  # recent results of _allot: units → counts

    @property
    def names(self) -> tuple[str, ...]:
        """Task names in the order of the config."""
        return tuple(self.tasks)

    @property
    def teachers(self) -> dict[str, str]:
        """The teacher of every task that is trained on."""
        return {name: task.teacher for name, task in self.tasks.items() if task.weight > 0 and task.teacher is not None}

    def check_envs(self) -> None:
        """Make one environment of each task, so that its errors come before the models are loaded.

        All at once: a data set that cannot be reached takes half a minute to fail.

        Raises:
            ConfigError: naming the key of each that cannot be made.
            MissingDependencyError: if the environment's package is not installed.
            Exception: what an environment itself raises; a note names the key.
        """
        for name, task in self.tasks.items():
            check_env(f"task.tasks.{name}.env", task.env)
        problems = []
        failed: Exception | None = None
        with ThreadPoolExecutor(len(self.tasks)) as pool:
            made = {name: pool.submit(task.make_env) for name, task in self.tasks.items()}
        for name, env in made.items():
            try:
                env.result().close()
            except ConfigError as error:
                problems.append(f"`task.tasks.{name}.env`: {error}")
            except Exception as error:  # noqa: BLE001  raised below, after the others are closed
                error.add_note(f"This came from the environment of `task.tasks.{name}.env`.")
                failed = failed or error
        if problems:
            raise ConfigError("\n".join(problems)) from failed
        if failed is not None:
            raise failed

    def shares(self, step: int, groups: int) -> dict[str, int]:
        """Task → its number of the `groups` of batch `step`; tasks without a group are left out."""
        before, after = self.groups_before(step, groups), self.groups_before(step + 1, groups)
        return {name: after[name] - before[name] for name in before if after[name] > before[name]}

    def groups_before(self, step: int, groups: int) -> dict[str, int]:
        """Task → its number of groups in all batches before `step`, each of `groups`."""
        if self.schedule == "mixed":
            return self._allot(step * groups)
        return {name: count * groups for name, count in self._allot(step).items()}

    def _allot(self, units: int) -> dict[str, int]:
        """Task → its number of the first `units`, each of which goes to the task that is furthest below its share.

        The allotment is periodic: with the weights as coprime integers, every task has exactly its share after as many
        units as their sum. Where that sum is large (a weight such as 0.123456), the loop continues from a recent
        result instead of from 0. The result depends on `units` alone.
        """
        parts = list(self._parts.values())
        period = sum(parts)
        rounds, rest = divmod(units, period)
        start = max(n for n in self._allotted if n <= rest)
        counts = list(self._allotted[start])
        for n in range(start + 1, rest + 1):
            counts[max(range(len(parts)), key=lambda k: parts[k] * n - counts[k] * period)] += 1
        self._allotted[rest] = tuple(counts)
        while len(self._allotted) > REMEMBERED:
            del self._allotted[sorted(self._allotted)[1]]  # 0 stays
        return {name: rounds * part + count for name, part, count in zip(self._parts, parts, counts, strict=True)}
