"""Tasks, their mixture, and the on-policy data set: a batch is a list of rollout requests, not of tokens."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import lightning as L
from torch.utils.data import DataLoader, Dataset

import opdlight.envs  # noqa: F401  (registers the environments)
from opdlight.envs.base import FIRST_HELD_OUT_SEED, TextEnv
from opdlight.errors import ConfigError
from opdlight.types import RolloutRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task: its environment, its teacher and its limits."""

    env: dict[str, Any]  # Gymnasium id and the environment's arguments
    teacher: str  # model folder, Hub name, or lab/<name>
    teacher_chat_template: dict[str, Any] | None = None  # what the teacher's template is given, as enable_thinking
    weight: float = 1.0  # share of the training batches (alternate) or of each batch (mixed)
    turn_tokens: int = 256  # longest completion of one turn
    trajectory_tokens: int = 2048  # longest context, prompts included
    env_seconds: float = 300.0  # longest reset or step of the environment; then its trajectory ends as env_error
    episodes: int = 128  # held-out episodes of one evaluation

    def make_env(self) -> TextEnv:
        """A new environment."""
        arguments = dict(self.env)
        env = gymnasium.make(arguments.pop("id"), disable_env_checker=True, **arguments).unwrapped
        if not isinstance(env, TextEnv):
            raise ConfigError.wrong("task.tasks.*.env.id", expected="a TextEnv", got=type(env).__name__)
        return env


class TaskMixture:
    """Several tasks by weight.

    schedule="alternate": each batch holds one task and the tasks take turns in proportion to their weights (the paper's
    multi-task setting). schedule="mixed": each batch holds every task in proportion to its weight.
    """

    def __init__(self, tasks: Mapping[str, Task], schedule: Literal["alternate", "mixed"] = "alternate") -> None:
        if not tasks:
            raise ConfigError.wrong("task.tasks", expected="at least one task", got=dict(tasks))
        for name, task in tasks.items():
            if task.weight <= 0:
                raise ConfigError.wrong(f"task.tasks.{name}.weight", expected="a positive number", got=task.weight)
        self.tasks = dict(tasks)
        self.schedule = schedule

    @property
    def names(self) -> tuple[str, ...]:
        """Task names in the order of the config."""
        return tuple(self.tasks)

    def shares(self, step: int, groups: int) -> dict[str, int]:
        """How many of the `groups` of batch `step` each task gets; largest-remainder shares over all batches so far."""
        if self.schedule == "mixed":
            before, after = self._allot(step * groups), self._allot((step + 1) * groups)
            return {name: after[name] - before[name] for name in self.tasks if after[name] > before[name]}
        before, after = self._allot(step), self._allot(step + 1)
        return {name: groups for name in self.tasks if after[name] > before[name]}

    def _allot(self, units: int) -> dict[str, int]:
        """Deal `units` one by one to the task that is furthest below its share; a function of `units` alone."""
        total = sum(t.weight for t in self.tasks.values())
        counts = dict.fromkeys(self.tasks, 0)
        for n in range(1, units + 1):
            counts[max(counts, key=lambda k: self.tasks[k].weight / total * n - counts[k])] += 1
        return counts


def episode_seed(*parts: object) -> int:
    """A training seed in [0, 10⁹) from anything printable; the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % FIRST_HELD_OUT_SEED


class OnPolicyDataset(Dataset[list[RolloutRequest]]):
    """Item i = the rollout requests of update i. It has a length, so that Lightning does not fetch one batch ahead."""

    def __init__(self, mixture: TaskMixture, *, updates: int, groups: int, group_size: int, seed: int) -> None:
        self.mixture, self.updates, self.groups, self.group_size, self.seed = mixture, updates, groups, group_size, seed

    def __len__(self) -> int:
        return self.updates

    def __getitem__(self, step: int) -> list[RolloutRequest]:
        if not 0 <= step < self.updates:
            raise IndexError(step)
        requests, group = [], 0
        for name, count in self.mixture.shares(step, self.groups).items():
            for _ in range(count):
                seed = episode_seed(self.seed, name, step, group)
                requests += [
                    RolloutRequest(task=name, seed=seed, group=group, sample=s) for s in range(self.group_size)
                ]
                group += 1
        return requests


def held_out(task: str, episodes: int, samples: int = 1) -> list[RolloutRequest]:
    """The evaluation requests of one task: seeds 10⁹, 10⁹+1, …, the same for every model and run."""
    return [
        RolloutRequest(task=task, seed=FIRST_HELD_OUT_SEED + e, group=e, sample=s)
        for e in range(episodes)
        for s in range(samples)
    ]


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
    """Training batches from `OnPolicyDataset`; one validation batch a task, of all its held-out episodes."""

    def __init__(self, mixture: TaskMixture, *, updates: int, groups: int, group_size: int, seed: int) -> None:
        super().__init__()
        self.mixture = mixture
        self.train_set = OnPolicyDataset(mixture, updates=updates, groups=groups, group_size=group_size, seed=seed)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Requests hold no tensors; the module moves what they become."""
        return batch

    def train_dataloader(self) -> Batches:
        """Batches in order."""
        trainer = self.trainer
        assert trainer is not None
        return Batches(self.train_set, lambda: trainer.fit_loop.epoch_loop.batch_progress.current.completed)

    def val_dataloader(self) -> DataLoader[list[RolloutRequest]]:
        """One batch a task."""
        batches: Sequence[list[RolloutRequest]] = [held_out(n, t.episodes) for n, t in self.mixture.tasks.items()]
        return DataLoader(batches, batch_size=None, num_workers=0)  # type: ignore[arg-type]
