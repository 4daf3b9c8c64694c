"""Teachers by REINFORCE, students by on-policy distillation; every seed × γ of one setting side by side."""

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
    """What the paper states (horizon, walks, micro_batches) or leaves open (the rest)."""

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
        """Fresh policies, one a stream."""
        return initial(streams, width=self.width, activation=self.activation, sigma_min=self.sigma_min)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Where trained policies walk: `TEST_WALKS` fresh walks of each run."""

    positions: Tensor  # [R, TEST_WALKS, T+1]
    distance: Tensor  # mean |s_T − target|, [R]
    reverse_kl: Tensor  # per step, mean over visited states, [R]; 0 for the teachers themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One setting: the runs in the order seed × γ (γ the faster), tasks by name."""

    runs: list[tuple[int, float]]
    variance: Tensor  # [iterations, R]; odd iterations (from 1) walk left, even ones right
    reverse_kl: Tensor  # [iterations, R], nats per step
    distance: Tensor  # mean |s_T − target|, [iterations, R]
    students: dict[str, Ends]
    teachers: dict[str, Ends]  # one run a seed


def reward(walk: Walk, paths: Paths, setting: Setting) -> Tensor:
    """−(s_T − target)² at the end, and at each step −distance_cost·|s_{t+1} − target| − step_cost·δ_t²; [R, N, T]."""
    off = paths.positions[..., 1:] - walk.target
    each = -setting.distance_cost * off.abs() - setting.step_cost * paths.steps**2
    each[..., -1] -= off[..., -1] ** 2
    return each


def train_teachers(walk: Walk, seeds: Sequence[int], setting: Setting, on_step: Callable[[], None]) -> Policies:
    """One teacher a seed by REINFORCE: Σ_t A_t ∇log π, A the reward-to-go less its batch mean at t, over its std."""
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
    """Train the teachers of each seed, then a student for each seed × γ, and walk with all of them at the end.

    All that is random hangs on the seed, so the γs of one seed start from the same weights and see the same noise.
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
    """Fresh walks of trained policies; the noise is that of the run's seed."""
    noise = normal([stream(seed, "test", walk.name) for seed in seeds], TEST_WALKS, setting.horizon)
    paths = roll_out(policies, walk, noise[list(seed_of_run)])
    kl = reverse_kl(*policies(walk, *paths.states), *teachers(walk, *paths.states)).mean(1)
    return Ends(positions=paths.positions, distance=end_distance(walk, paths), reverse_kl=kl)
