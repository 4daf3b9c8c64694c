"""The on-policy data set: a batch is a list of rollout requests, not of tokens."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset

import opdlight.envs  # noqa: F401  (registers the environments)
from opdlight.data.tasks import Task, TaskMixture, log
from opdlight.envs.base import FIRST_HELD_OUT_SEED
from opdlight.errors import ConfigError
from opdlight.system.console import is_first_process
from opdlight.system.lightning_internals import completed_steps
from opdlight.types import RolloutRequest


def episode_seed(*parts: object) -> int:
    """A training seed in [0, 10⁹) from anything printable; the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % FIRST_HELD_OUT_SEED


def shuffled_seed(episodes: int, draw: int, *parts: object) -> int:
    """The seed of the `draw`-th training episode of an environment that has `episodes` of them; draws count from 0.

    They come in a new order each epoch, every one once before any comes again. The order depends on `parts`, such as
    the run's seed and the task, and on nothing else.
    """
    epoch, at = divmod(draw, episodes)
    return _order(episodes, *parts, epoch)[at]


@lru_cache(maxsize=16)
def _order(count: int, *parts: object) -> list[int]:
    """The numbers from 0 to `count` − 1, shuffled."""
    return np.random.default_rng(episode_seed("order", *parts)).permutation(count).tolist()


class OnPolicyDataset(Dataset[list[RolloutRequest]]):
    """Item i = the rollout requests of update i. It has a length, so that Lightning does not fetch one batch ahead."""

    def __init__(self, mixture: TaskMixture, *, updates: int, groups: int, group_size: int, seed: int) -> None:
        if not mixture.teachers:
            raise ConfigError.wrong(
                "task.tasks", expected="at least one task with a positive weight", got=list(mixture.names)
            )
        self.mixture, self.updates, self.groups, self.group_size, self.seed = mixture, updates, groups, group_size, seed
        self.episodes = {name: training_episodes(name, mixture.tasks[name]) for name in mixture.teachers}

    def __len__(self) -> int:
        return self.updates

    def __getitem__(self, step: int) -> list[RolloutRequest]:
        if not 0 <= step < self.updates:
            raise IndexError(step)
        requests, group = [], 0
        drawn = self.mixture.dealt(step, self.groups)
        for name, count in self.mixture.shares(step, self.groups).items():
            for i in range(count):
                if (episodes := self.episodes[name]) is None:
                    seed = episode_seed(self.seed, name, step, group)
                else:
                    seed = shuffled_seed(episodes, drawn[name] + i, self.seed, name)
                requests += [
                    RolloutRequest(task=name, seed=seed, group=group, sample=s) for s in range(self.group_size)
                ]
                group += 1
        return requests

    def epochs(self, step: int) -> dict[str, float]:
        """How often the training rows were gone through before `step`, by task; only of tasks that have rows."""
        drawn = self.mixture.dealt(step, self.groups)
        return {name: drawn[name] / count for name, count in self.episodes.items() if count is not None}


def training_episodes(name: str, task: Task) -> int | None:
    """How many training episodes a task has, None if a new one for every seed; ConfigError if there are none."""
    count, _ = task.sizes()
    if count == 0:
        expected = "an environment with training episodes (or set the task's `weight` to 0)"
        raise ConfigError.wrong(f"task.tasks.{name}.env", expected=expected, got=task.env)
    return count


def held_out(name: str, task: Task) -> list[RolloutRequest]:
    """The evaluation requests of one task, the same for every model and run.

    Of an environment that makes an episode of every seed: seeds 10⁹, 10⁹+1, … Of a finite one: rows in a fixed shuffled
    order, each with one seed and one group however often it comes, so that its attempts count as what they are.

    Raises:
        ConfigError: if the environment has no held-out episodes, or makes one of every seed and `episodes` is null.
    """
    _, rows = task.sizes()
    episodes = rows if task.episodes is None else task.episodes
    key = f"task.tasks.{name}.episodes"
    if episodes is None:
        expected = f"a number, because {task.env.get('id')} makes a new held-out episode of every seed"
        raise ConfigError.wrong(key, expected=expected, got=None)
    if rows == 0:
        expected = "an environment with held-out episodes"
        raise ConfigError.wrong(f"task.tasks.{name}.env", expected=expected, got=task.env)
    order: Sequence[int] = range(episodes) if rows is None else _order(rows, "held out")
    rows = episodes if rows is None else rows
    if episodes > rows and episodes % rows:
        few = episodes // rows
        _warn(
            f"{key}: {episodes} episodes over {rows} held-out rows: each row {few} or {few + 1} times. "
            f"{key}=null plays each once, {few * rows} each {few} times."
        )
    return [
        RolloutRequest(task=name, seed=FIRST_HELD_OUT_SEED + order[group], group=group, sample=sample)
        for group in range(min(rows, episodes))
        for sample in range(task.samples * len(range(group, episodes, rows)))
    ]


@lru_cache
def _warn(text: str) -> None:
    """Log a warning once, from the first process."""
    if is_first_process():
        log.warning(text)


class Batches:
    """The items of a data set in order, made in this process when they are asked for.

    Args:
        dataset: the items.
        done: how many have been trained on; a checkpoint keeps it, and a run that goes on begins there.
    """

    def __init__(self, dataset: OnPolicyDataset, done: Callable[[], int]) -> None:
        self.dataset, self.done, self.start = dataset, done, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[list[RolloutRequest]]:
        return (self.dataset[at] for at in range(self.start, len(self.dataset)))

    def state_dict(self) -> dict[str, int]:
        """Where a run that goes on begins."""
        return {"start": self.done()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Begin there."""
        self.start = state["start"]


class OnPolicyData(L.LightningDataModule):
    """Training batches from `OnPolicyDataset`; one validation batch a task, of all its held-out episodes.

    Raises:
        ConfigError: if an environment cannot be made, or has not the episodes that a task asks for.
    """

    def __init__(self, mixture: TaskMixture, *, updates: int, groups: int, group_size: int, seed: int) -> None:
        super().__init__()
        self.mixture = mixture
        self.train_set = OnPolicyDataset(mixture, updates=updates, groups=groups, group_size=group_size, seed=seed)
        self.validation_set = [held_out(name, task) for name, task in mixture.tasks.items()]

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Requests hold no tensors; the module moves what they become."""
        return batch

    def train_dataloader(self) -> Batches:
        """Batches in order."""
        trainer = self.trainer
        assert trainer is not None
        return Batches(self.train_set, lambda: completed_steps(trainer))

    def val_dataloader(self) -> DataLoader[list[RolloutRequest]]:
        """One batch a task."""
        return DataLoader(self.validation_set, batch_size=None, num_workers=0)  # type: ignore[arg-type]
