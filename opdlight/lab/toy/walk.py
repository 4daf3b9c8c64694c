"""A walk on a line, Gaussian policies for it, and the discounted estimator of the sequence-level reverse KL.

R policies run in parallel: every tensor has R as its first axis, and nothing is summed over it. So runs do not affect
one another, except for rounding, even if one diverges.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """A task: walk from `start` to `target` in steps δ ~ N(μ, σ)."""

    name: str
    code: float  # input of the policy that identifies the task
    start: float
    target: float


WALKS = (
    Walk(name="left", code=-1.0, start=2.0, target=-3.0),
    Walk(name="right", code=1.0, start=-2.0, target=3.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """R Gaussian policies: an MLP of three layers, input (task, position, t/T), outputs μ and σ.

    σ = sigma_min + softplus(second output); neither μ nor σ is bounded above. `weights`: W₁ [R,3,H], b₁ [R,1,H],
    W₂ [R,H,H], b₂ [R,1,H], W₃ [R,H,2], b₃ [R,1,2].
    """

    weights: tuple[Tensor, ...]
    activation: Literal["relu", "tanh"]
    sigma_min: float

    def last_hidden(self, walk: Walk, position: Tensor, time: Tensor) -> Tensor:
        """The input of the output layer [R, n, H], at `position` [R, n] and `time` t/T [R, n]."""
        w1, b1, w2, b2, _, _ = self.weights
        act = torch.relu if self.activation == "relu" else torch.tanh
        inputs = torch.stack([torch.full_like(position, walk.code), position, time], -1)
        return act(torch.baddbmm(b2, act(torch.baddbmm(b1, inputs, w1)), w2))

    def outputs(self, hidden: Tensor) -> Tensor:
        """The output layer, [R, n, 2]."""
        return torch.baddbmm(self.weights[5], hidden, self.weights[4])

    def gaussian(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """μ and σ, [R, n] each, of `outputs` [R, n, 2]."""
        return outputs[..., 0], self.sigma_min + softplus(outputs[..., 1])

    def __call__(self, walk: Walk, position: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """μ and σ, [R, n] each."""
        return self.gaussian(self.outputs(self.last_hidden(walk, position, time)))

    def pick(self, runs: Sequence[int]) -> "Policies":
        """Copies of the policies with the indices `runs`, in this order."""
        return replace(self, weights=tuple(w.detach()[list(runs)] for w in self.weights))

    def trainable(self) -> "Policies":
        """The same weights as leaves that require gradients."""
        return replace(self, weights=tuple(w.detach().requires_grad_() for w in self.weights))


def stream(seed: int, *purpose: object) -> torch.Generator:
    """A random generator for each combination of seed and purpose."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def normal(streams: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Standard normal numbers [R, *shape], row r from `streams[r]`."""
    return torch.stack([torch.randn(shape, generator=s) for s in streams])


def initial(
    streams: Sequence[torch.Generator], *, width: int, activation: Literal["relu", "tanh"], sigma_min: float
) -> Policies:
    """New policies, one per stream; weights and biases are uniform in ±1/√fan_in, as in torch.nn.Linear."""
    shapes = [(3, width), (1, width), (width, width), (1, width), (width, 2), (1, 2)]
    bounds = [1 / math.sqrt(n) for n in (3, 3, width, width, width, width)]
    weights = tuple(
        torch.stack([(2 * torch.rand(shape, generator=s) - 1) * bound for s in streams])
        for shape, bound in zip(shapes, bounds, strict=True)
    )
    return Policies(weights=weights, activation=activation, sigma_min=sigma_min)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """N walks of each of R policies."""

    positions: Tensor  # s_0 … s_T, [R, N, T+1]
    steps: Tensor  # δ_0 … δ_{T−1}, [R, N, T]

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """Position and t/T before each step, [R, N·T] each."""
        runs, walks, horizon = self.steps.shape
        time = (torch.arange(horizon).to(self.steps) / horizon).expand(runs, walks, horizon)
        return self.positions[..., :-1].flatten(1), time.flatten(1)


@torch.no_grad()
def roll_out(policies: Policies, walk: Walk, noise: Tensor) -> Paths:
    """s_{t+1} = s_t + μ(s_t) + σ(s_t) ε_t with ε = `noise` [R, N, T]."""
    position = torch.full_like(noise[..., 0], walk.start)
    positions, steps = [position], []
    horizon = noise.shape[-1]
    for t in range(horizon):
        mean, std = policies(walk, position, torch.full_like(position, t / horizon))
        steps.append(mean + std * noise[..., t])
        position = position + steps[-1]
        positions.append(position)
    return Paths(positions=torch.stack(positions, -1), steps=torch.stack(steps, -1))


def log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The log-density: log N(x; μ, σ) = −(x − μ)² / 2σ² − log σ − ½ log 2π, elementwise, in nats."""
    return -(((x - mean) / std) ** 2) / 2 - std.log() - math.log(2 * math.pi) / 2


def reverse_kl(mean: Tensor, std: Tensor, teacher_mean: Tensor, teacher_std: Tensor) -> Tensor:
    """KL(π‖q) of two Gaussians = log(σ_q/σ) + (σ² + (μ − μ_q)²) / 2σ_q² − ½, elementwise, in nats."""
    return (teacher_std / std).log() + (std**2 + (mean - teacher_mean) ** 2) / (2 * teacher_std**2) - 0.5


def to_go(costs: Tensor, gammas: Tensor) -> Tensor:
    """R_t = Σ_{t'≥t} γ^{t'−t} r_{t'} for `costs` r [R, N, T] and a γ for each run, `gammas` [R] (paper Eq. 3).

    Equal to `opdlight.losses.sampled.discounted_to_go` on each walk, but as one product with Γ_{t't} = γ^{t'−t}.

    >>> to_go(torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([0.5])).tolist()
    [[[3.0, 4.0, 4.0]]]
    """
    t = torch.arange(costs.shape[-1])
    distance = t[:, None] - t[None, :]
    return costs @ torch.where(distance >= 0, gammas[:, None, None] ** distance.clamp(min=0), 0.0).to(costs.dtype)
