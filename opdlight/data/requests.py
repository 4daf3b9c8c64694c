"""The on-policy data set: a batch is a list of rollout requests; their tokens do not exist yet."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset

import opdlight.envs  # noqa: F401  (registers the environments)
from opdlight.data.tasks import Task, TaskMixture, log
from opdlight.envs.base import FIRST_HELD_OUT_SEED
from opdlight.errors import ConfigError
from opdlight.system.console import is_first_process
from opdlight.system.lightning_internals import processed_steps
from opdlight.types import RolloutRequest


def episode_seed(*parts: object) -> int:
    """A training seed in [0, 10⁹), by a hash of the `repr` of `parts`; the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % FIRST_HELD_OUT_SEED


def shuffled_seed(episodes: int, draw: int, *parts: object) -> int:
    """The seed of draw number `draw` (from 0) from an environment with a finite number of training `episodes`.

    Each epoch is a new permutation of all episodes. It depends only on `parts`, such as the run's seed and the task.
    """
    epoch, position = divmod(draw, episodes)
    return _order(episodes, *parts, epoch)[position]


@lru_cache(maxsize=16)
def _order(count: int, *parts: object) -> list[int]:
    """A permutation of 0 … `count` − 1, seeded by `parts`."""
    return np.random.default_rng(episode_seed("order", *parts)).permutation(count).tolist()


class OnPolicyDataset(Dataset[list[RolloutRequest]]):
    """Item i is the list of rollout requests of update i.

    It has a length because Lightning prefetches a batch from a data set without one.

    Args:
        mixture: the tasks and their shares.
        updates: number of items.
        groups: groups per item.
        group_size: trajectories per group, with the same task and seed.
        seed: the run's seed.

    Raises:
        ConfigError: if no task is trained on, or one has no training episodes.
    """

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
        drawn = self.mixture.groups_before(step, self.groups)
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
        """Task → passes over its training rows before `step`; only tasks whose environment has rows."""
        drawn = self.mixture.groups_before(step, self.groups)
        return {name: drawn[name] / count for name, count in self.episodes.items() if count is not None}


def training_episodes(name: str, task: Task) -> int | None:
    """The number of a task's training episodes; None where every seed is a new episode.

    Raises:
        ConfigError: if there are none.
    """
    count, _ = task.sizes()
    if count == 0:
        expected = "an environment with training episodes (or set the task's `weight` to 0)"
        raise ConfigError.wrong(f"task.tasks.{name}.env", expected=expected, got=task.env)
    return count


def held_out(name: str, task: Task) -> list[RolloutRequest]:
    """The rollout requests for evaluating one task; the same for every model and run.

    Seeds are 10⁹, 10⁹+1, … where every seed is an episode. Of a finite number of rows they are in a fixed shuffled
    order; a row that is evaluated several times keeps its seed and group, so its attempts count as samples of one
    episode.

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
    """A data loader that makes the items of a data set in order, in this process, each when it is needed.

    Args:
        dataset: the data set.
        done: returns the number of items that have been trained on. Checkpoints save it, and a resumed run starts
            there.
    """

    def __init__(self, dataset: OnPolicyDataset, done: Callable[[], int]) -> None:
        self.dataset, self.done, self.start = dataset, done, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[list[RolloutRequest]]:
        return (self.dataset[at] for at in range(self.start, len(self.dataset)))

    def state_dict(self) -> dict[str, int]:
        """The item from which a resumed run continues."""
        return {"start": self.done()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from the saved item."""
        self.start = state["start"]


class OnPolicyData(L.LightningDataModule):
    """Training batches from `OnPolicyDataset`, and one validation batch per task with all its held-out episodes.

    The arguments are those of `OnPolicyDataset`.

    Raises:
        ConfigError: if an environment cannot be made, or lacks the episodes that its task asks for.
    """

    def __init__(self, mixture: TaskMixture, *, updates: int, groups: int, group_size: int, seed: int) -> None:
        super().__init__()
        self.mixture = mixture
        self.train_set = OnPolicyDataset(mixture, updates=updates, groups=groups, group_size=group_size, seed=seed)
        self.validation_set = [held_out(name, task) for name, task in mixture.tasks.items()]

    def train_dataloader(self) -> Batches:
        """The training batches, from the first one that has not been trained on."""
        trainer = self.trainer
        assert trainer is not None
        return Batches(self.train_set, lambda: processed_steps(trainer))

    def val_dataloader(self) -> DataLoader[list[RolloutRequest]]:
        """One batch per task."""
        return DataLoader(self.validation_set, batch_size=None, num_workers=0)  # type: ignore[arg-type]
