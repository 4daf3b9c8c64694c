"""The discounted gradient of on-policy distillation for R students at once, and its variance over micro-batches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from opdlight.lab.toy.walk import Paths, Policies, Walk, log_prob, reverse_kl, to_go


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """ĝ_γ of R students on one batch, with its variance and the KL."""

    gradients: tuple[Tensor, ...]  # in the order of Policies.weights
    variance: Tensor  # of the output layer's gradient over micro-batches, [R], float64
    reverse_kl: Tensor  # KL(student‖teacher) per step at the visited states, exact, [R], nats


def discounted_gradient(
    students: Policies, teachers: Policies, walk: Walk, paths: Paths, gammas: Tensor, micro_batches: int
) -> Estimate:
    """ĝ_γ = 1/N Σ_n Σ_t (Σ_{t'≥t} γ^{t'−t} r_{t'}) ∇log π(δ_t|s_t), r = log π(δ_t|s_t) − log q(δ_t|s_t) (paper Eq. 3).

    States and r are detached. The sum is over the T steps, the mean over the N walks.

    Args:
        students: π, weights that require gradients.
        teachers: q, one for each student.
        walk: the task that the walks belong to.
        paths: N walks of each student, sampled from it.
        gammas: γ of each run, [R].
        micro_batches: M, a divisor of N.
    """
    runs, walks, horizon = paths.steps.shape
    steps, states = paths.steps.flatten(1), paths.states
    hidden = students.last_hidden(walk, *states)
    outputs = students.outputs(hidden)
    mean, std = students.gaussian(outputs)
    log_pi = log_prob(steps, mean, std)
    with torch.no_grad():
        teacher = teachers(walk, *states)
        ratio = (log_pi - log_prob(steps, *teacher)).reshape(runs, walks, horizon)
        weight = to_go(ratio, gammas).flatten(1)
        kl = reverse_kl(mean, std, *teacher).mean(1)
    *gradients, per_step = torch.autograd.grad((weight * log_pi).sum() / walks, [*students.weights, outputs])
    variance = gradient_variance(
        hidden.detach().reshape(runs, walks, horizon, -1),
        per_step.reshape(runs, walks, horizon, 2) * walks,
        micro_batches,
    )
    return Estimate(gradients=tuple(gradients), variance=variance, reverse_kl=kl)


def gradient_variance(hidden: Tensor, output_gradients: Tensor, micro_batches: int) -> Tensor:
    """(1/M) Σ_m ‖g_m − ḡ‖² over the parameters of the output layer, [R], float64 (arXiv 2603.25562, toy study).

    g_m is the gradient of micro-batch m: of the mean over its walks of Σ_t R_t log π. ḡ is the mean of all g_m.

    Args:
        hidden: input of the output layer, [R, N, T, H].
        output_gradients: ∂(R_t log π)/∂(μ, second output) of each step, [R, N, T, 2].
        micro_batches: M, a divisor of N; each has consecutive walks.
    """
    runs, walks = hidden.shape[:2]
    h = hidden.reshape(runs * micro_batches, -1, hidden.shape[-1])
    g = output_gradients.reshape(runs * micro_batches, -1, 2)
    parts = [(h.mT @ g).flatten(1), g.sum(1)]  # weight, bias
    gradients = torch.cat(parts, -1).double().reshape(runs, micro_batches, -1) / (walks // micro_batches)
    return ((gradients - gradients.mean(1, keepdim=True)) ** 2).sum(-1).mean(-1)
