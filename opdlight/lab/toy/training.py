"""Trains teachers by REINFORCE and students by on-policy distillation, all seeds and γs of a setting in parallel."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from opdlight.bounds import Bounds, NonNegativeFloat, PositiveFloat, PositiveInt
from opdlight.lab.toy.estimator import discounted_gradient
from opdlight.lab.toy.walk import (
    WALKS,
    Paths,
    Policies,
    Walk,
    initial,
    log_prob,
    normal,
    reverse_kl,
    roll_out,
    stream,
    to_go,
)

TEST_WALKS = 512  # rolled out of each policy, for each task, when it is trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The hyper-parameters: `horizon`, `walks` and `micro_batches` are in the paper, all others are not."""

    horizon: PositiveInt
    walks: PositiveInt
    micro_batches: Annotated[int, Bounds(at_least=2)]
    width: PositiveInt
    activation: Literal["relu", "tanh"]
    sigma_min: PositiveFloat
    optimizer: Literal["adam", "sgd"]
    learning_rate: PositiveFloat
    teacher_iterations: PositiveInt
    teacher_learning_rate: PositiveFloat
    distance_cost: NonNegativeFloat
    step_cost: NonNegativeFloat

    def __post_init__(self) -> None:
        lowest = {"horizon": 1, "width": 1, "micro_batches": 2, "teacher_iterations": 1}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ValueError(f"Expected `setting.{name}` to be at least {low}, but got {getattr(self, name)}.")
        for name in ("sigma_min", "learning_rate", "teacher_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Expected `setting.{name}` to be above 0, but got {getattr(self, name)}.")
        for name in ("distance_cost", "step_cost"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Expected `setting.{name}` to be at least 0, but got {getattr(self, name)}.")
        if self.walks < 1 or self.walks % self.micro_batches:
            raise ValueError(
                f"Expected `setting.walks` to be a multiple of micro_batches ({self.micro_batches}), "
                f"but got {self.walks}."
            )

    def policies(self, streams: Sequence[torch.Generator]) -> Policies:
        """New policies, one per random stream."""
        return initial(streams, width=self.width, activation=self.activation, sigma_min=self.sigma_min)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The test walks of trained policies, `TEST_WALKS` for each run."""

    positions: Tensor  # [R, TEST_WALKS, T+1]
    distance: Tensor  # mean |s_T − target|, [R]
    reverse_kl: Tensor  # per step, mean over visited states, [R]; 0 for the teachers themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The results of one setting; runs are in the order seed × γ, with γ varying fastest."""

    runs: list[tuple[int, float]]
    variance: Tensor  # [iterations, R]; odd iterations (from 1) are of the left task, even ones of the right
    reverse_kl: Tensor  # [iterations, R], nats per step
    distance: Tensor  # mean |s_T − target|, [iterations, R]
    students: dict[str, Ends]
    teachers: dict[str, Ends]  # one run per seed


def reward(walk: Walk, paths: Paths, setting: Setting) -> Tensor:
    """−distance_cost·|s_{t+1} − target| − step_cost·δ_t² at each step, and −(s_T − target)² at the end; [R, N, T]."""
    off = paths.positions[..., 1:] - walk.target
    each = -setting.distance_cost * off.abs() - setting.step_cost * paths.steps**2
    each[..., -1] -= off[..., -1] ** 2
    return each


def train_teachers(walk: Walk, seeds: Sequence[int], setting: Setting, on_step: Callable[[], None]) -> Policies:
    """One teacher per seed by REINFORCE: Σ_t A_t ∇log π; A_t is the reward-to-go, centred at each t and scaled."""
    streams = [stream(seed, "teacher", walk.name) for seed in seeds]
    teachers = setting.policies(streams).trainable()
    optimizer = torch.optim.Adam(teachers.weights, lr=setting.teacher_learning_rate)
    undiscounted = torch.ones(len(seeds))
    for _ in range(setting.teacher_iterations):
        paths = roll_out(teachers, walk, normal(streams, setting.walks, setting.horizon))
        gain = to_go(reward(walk, paths, setting), undiscounted)
        advantage = gain - gain.mean(1, keepdim=True)
        advantage = advantage / (advantage.std((1, 2), keepdim=True) + 1e-8)
        log_pi = log_prob(paths.steps.flatten(1), *teachers(walk, *paths.states))
        loss = -(advantage.flatten(1) * log_pi).sum() / setting.walks
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_step()
    return teachers.pick(range(len(seeds)))


def study(
    setting: Setting, *, seeds: Sequence[int], gammas: Sequence[float], iterations: int, on_step: Callable[[], None]
) -> Outcome:
    """Train the teachers of each seed, then a student for each seed and γ, and do test walks with all of them.

    Random numbers depend on the seed only: the students of one seed start with the same weights and get the same noise.
    """
    runs = list(itertools.product(seeds, gammas))
    seed_of_run = [i for i, _ in itertools.product(range(len(seeds)), gammas)]
    teachers = [train_teachers(walk, seeds, setting, on_step) for walk in WALKS]
    paired = [t.pick(seed_of_run) for t in teachers]
    streams = [stream(seed, "student") for seed in seeds]
    students = setting.policies(streams).pick(seed_of_run).trainable()
    kind = torch.optim.Adam if setting.optimizer == "adam" else torch.optim.SGD
    optimizer = kind(students.weights, lr=setting.learning_rate)
    gamma = torch.tensor([g for _, g in runs])
    rows = []
    for iteration in range(iterations):
        walk, teacher = WALKS[iteration % 2], paired[iteration % 2]
        noise = normal(streams, setting.walks, setting.horizon)[seed_of_run]
        paths = roll_out(students, walk, noise)
        estimate = discounted_gradient(students, teacher, walk, paths, gamma, setting.micro_batches)
        for weight, gradient in zip(students.weights, estimate.gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        rows.append((estimate.variance, estimate.reverse_kl, end_distance(walk, paths)))
        on_step()
    variance, kl, distance = (torch.stack(column) for column in zip(*rows, strict=True))
    return Outcome(
        runs=runs,
        variance=variance,
        reverse_kl=kl,
        distance=distance,
        students={
            w.name: ends(students, q, w, seeds, seed_of_run, setting) for w, q in zip(WALKS, paired, strict=True)
        },
        teachers={
            w.name: ends(q, q, w, seeds, range(len(seeds)), setting) for w, q in zip(WALKS, teachers, strict=True)
        },
    )


def end_distance(walk: Walk, paths: Paths) -> Tensor:
    """Mean |s_T − target| over the walks, [R]."""
    return (paths.positions[..., -1] - walk.target).abs().mean(1)


@torch.no_grad()
def ends(
    policies: Policies,
    teachers: Policies,
    walk: Walk,
    seeds: Sequence[int],
    seed_of_run: Sequence[int],
    setting: Setting,
) -> Ends:
    """Test walks of trained policies; the noise depends on the seed of the run."""
    noise = normal([stream(seed, "test", walk.name) for seed in seeds], TEST_WALKS, setting.horizon)
    paths = roll_out(policies, walk, noise[list(seed_of_run)])
    kl = reverse_kl(*policies(walk, *paths.states), *teachers(walk, *paths.states)).mean(1)
    return Ends(positions=paths.positions, distance=end_distance(walk, paths), reverse_kl=kl)
