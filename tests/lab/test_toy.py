"""The parts of the toy study against slow obvious references."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from opdlight.config import ToyConfig, compose, instantiate
from opdlight.lab.toy.estimator import Estimate, discounted_gradient
from opdlight.lab.toy.training import Outcome, Setting, reward, study
from opdlight.lab.toy.walk import WALKS, Paths, Policies, initial, log_prob, normal, reverse_kl, roll_out, stream, to_go
from opdlight.losses.sampled import discounted_to_go

LEFT, RIGHT = WALKS
GAMMAS = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
SMALL = Setting(
    horizon=4,
    walks=8,
    micro_batches=4,
    width=6,
    activation="relu",
    sigma_min=0.1,
    optimizer="adam",
    learning_rate=0.01,
    teacher_iterations=3,
    teacher_learning_rate=0.01,
    distance_cost=0.0,
    step_cost=0.0,
)


def policies(*seeds: int, sigma_min: float = 0.1, width: int = 6) -> Policies:
    """Float64, so that a tolerance can be tight."""
    found = initial([stream(s) for s in seeds], width=width, activation="relu", sigma_min=sigma_min)
    return replace(found, weights=tuple(w.double() for w in found.weights)).trainable()


def noise(runs: int, walks: int, horizon: int) -> Tensor:
    return normal([stream(r, "noise") for r in range(runs)], walks, horizon).double()


def plain_network(weights: list[Tensor], task: float, position: Tensor, time: float) -> tuple[Tensor, Tensor]:
    """μ and σ of one policy at one state, written out."""
    w1, b1, w2, b2, w3, b3 = weights
    x = torch.stack([torch.tensor(task, dtype=torch.float64), position, torch.tensor(time, dtype=torch.float64)])
    hidden = torch.relu(torch.relu(x @ w1 + b1[0]) @ w2 + b2[0])
    mean, raw = hidden @ w3 + b3[0]
    return mean, 0.1 + torch.log1p(torch.exp(raw))


def plain_loss(weights: list[Tensor], teacher: list[Tensor], paths: Paths, run: int, n: int, gamma: float) -> Tensor:
    """Σ_t sg(R_t) log π(δ_t|s_t) of one walk, with loops over t and t'."""
    horizon = paths.steps.shape[2]
    log_pi, ratio = [], []
    for t in range(horizon):
        state = (RIGHT.code, paths.positions[run, n, t], t / horizon)
        step = paths.steps[run, n, t]
        log_pi.append(Normal(*plain_network(weights, *state)).log_prob(step))
        ratio.append((log_pi[-1] - Normal(*plain_network(teacher, *state)).log_prob(step)).item())
    total = torch.zeros((), dtype=torch.float64)
    for t in range(horizon):
        total = total + sum(gamma ** (u - t) * ratio[u] for u in range(t, horizon)) * log_pi[t]
    return total


@pytest.fixture(scope="module")
def batch() -> tuple[Policies, Policies, Paths, Estimate]:
    students, teachers = policies(1, 2, 3), policies(4, 5, 6)
    paths = roll_out(students, RIGHT, noise(3, 8, 5))
    return students, teachers, paths, discounted_gradient(students, teachers, RIGHT, paths, GAMMAS, 4)


def test_the_gradient_is_that_of_plain_loops(batch: tuple[Policies, Policies, Paths, Estimate]) -> None:
    students, teachers, paths, found = batch
    for run, gamma in enumerate(GAMMAS.tolist()):
        weights = [w[run].detach().requires_grad_() for w in students.weights]
        teacher = [w[run].detach() for w in teachers.weights]
        loss = sum(plain_loss(weights, teacher, paths, run, n, gamma) for n in range(8)) / 8
        assert isinstance(loss, Tensor)
        for expected, gradient in zip(torch.autograd.grad(loss, weights), found.gradients, strict=True):
            torch.testing.assert_close(gradient[run], expected, rtol=1e-9, atol=1e-12)


def test_the_variance_is_that_of_the_micro_batches_own_gradients(
    batch: tuple[Policies, Policies, Paths, Estimate],
) -> None:
    students, teachers, paths, found = batch
    for run, gamma in enumerate(GAMMAS.tolist()):
        weights = [w[run].detach().requires_grad_() for w in students.weights]
        teacher = [w[run].detach() for w in teachers.weights]
        gradients = []
        for m in range(4):
            loss = sum(plain_loss(weights, teacher, paths, run, n, gamma) for n in (2 * m, 2 * m + 1)) / 2
            assert isinstance(loss, Tensor)
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights[4:])]))
        mean = sum(gradients) / 4
        expected = sum(float(((g - mean) ** 2).sum()) for g in gradients) / 4
        assert float(found.variance[run]) == pytest.approx(expected, rel=1e-9)


def test_reward_to_go_is_that_of_the_losses() -> None:
    costs = noise(3, 2, 7)
    flat = {"trajectory": torch.arange(2).repeat_interleave(7), "position": torch.arange(7).repeat(2)}
    for run, gamma in enumerate(GAMMAS.tolist()):
        expected = discounted_to_go(costs[run].flatten(), **flat, gamma=gamma).reshape(2, 7)
        torch.testing.assert_close(to_go(costs, GAMMAS)[run], expected, rtol=1e-12, atol=1e-12)


def test_densities_and_divergence_are_torchs() -> None:
    x, mean, other = noise(3, 4, 5)
    std, wide = torch.rand(2, 4, 5, dtype=torch.float64, generator=stream(1)) + 0.1
    torch.testing.assert_close(log_prob(x, mean, std), Normal(mean, std).log_prob(x))
    expected = kl_divergence(Normal(mean, std), Normal(other, wide))
    torch.testing.assert_close(reverse_kl(mean, std, other, wide), expected)


def test_at_gamma_0_the_expected_gradient_is_that_of_the_per_step_reverse_kl() -> None:
    """One step from one state, noise at the quantiles of the normal distribution instead of a sample."""
    students, teachers = policies(1, width=3), policies(2, width=3)
    n = 40_000
    quantiles = Normal(0.0, 1.0).icdf((torch.arange(n, dtype=torch.float64) + 0.5) / n).reshape(1, n, 1)
    paths = roll_out(students, LEFT, quantiles)
    found = discounted_gradient(students, teachers, LEFT, paths, torch.zeros(1, dtype=torch.float64), 2)
    state = (torch.full((1, 1), LEFT.start, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    with torch.no_grad():
        teacher = teachers(LEFT, *state)
    exact = torch.autograd.grad(reverse_kl(*students(LEFT, *state), *teacher).sum(), students.weights)
    assert max(float(g.abs().max()) for g in exact) > 0.1
    for gradient, expected in zip(found.gradients, exact, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=2e-3, atol=1e-4)
    exact_value = reverse_kl(*students(LEFT, *state), *teacher).item()
    assert found.reverse_kl.item() == pytest.approx(exact_value)


def test_a_student_that_is_its_teacher_gets_no_gradient() -> None:
    students = policies(1, 2, 3)
    paths = roll_out(students, LEFT, noise(3, 8, 5))
    found = discounted_gradient(students, students, LEFT, paths, GAMMAS, 4)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in found.gradients)
    assert found.variance.tolist() == found.reverse_kl.tolist() == [0.0, 0.0, 0.0]


def test_a_walk_adds_its_steps_and_a_step_is_drawn_from_the_policy() -> None:
    students, e = policies(1, 2), noise(2, 3, 4)
    paths = roll_out(students, RIGHT, e)
    torch.testing.assert_close(paths.positions.diff(dim=-1), paths.steps)
    assert (paths.positions[..., 0] == RIGHT.start).all()
    weights = [w[1].detach() for w in students.weights]
    for t in range(4):
        mean, std = plain_network(weights, RIGHT.code, paths.positions[1, 2, t], t / 4)
        assert float(paths.steps[1, 2, t]) == pytest.approx(float(mean + std * e[1, 2, t]))


def test_the_reward_counts_the_end_once_and_each_step() -> None:
    positions = torch.tensor([[[2.0, 1.0, -1.0]]])
    paths = Paths(positions=positions, steps=positions.diff(dim=-1))
    assert reward(LEFT, paths, SMALL).tolist() == [[[0.0, -4.0]]]  # (−1 − (−3))² = 4
    costly = replace(SMALL, distance_cost=1.0, step_cost=0.5)
    assert reward(LEFT, paths, costly).tolist() == [[[-4.0 - 0.5, -4.0 - 2.0 - 2.0]]]


def test_reinforce_teaches_a_teacher_to_reach_its_target() -> None:
    setting = replace(SMALL, walks=64, width=32, teacher_iterations=250)
    (distance,) = (
        study(setting, seeds=[1], gammas=[0.0], iterations=2, on_step=lambda: None).teachers["right"].distance.tolist()
    )
    assert distance < 0.3  # the start is 5 away


def test_distillation_brings_the_student_to_its_teacher() -> None:
    setting = replace(SMALL, walks=32, width=16, teacher_iterations=50)
    outcome = study(setting, seeds=[1], gammas=[0.0, 1.0], iterations=200, on_step=lambda: None)
    for task, walk in enumerate(WALKS):
        before = outcome.reverse_kl[task]
        assert (outcome.students[walk.name].reverse_kl < 0.05 * before).all(), walk


def numbers(outcome: Outcome, runs: list[int]) -> Tensor:
    """All that a study measures of these runs, one row a run."""
    curves = [outcome.variance.log(), outcome.reverse_kl, outcome.distance]
    ends = [outcome.students[w.name].positions.flatten(1) for w in WALKS]
    return torch.cat([*(c.T.double() for c in curves), *ends], 1)[runs]


def test_a_run_depends_on_its_seed_and_gamma_and_on_no_companion() -> None:
    def go(seeds: list[int], gammas: list[float]) -> Outcome:
        return study(SMALL, seeds=seeds, gammas=gammas, iterations=6, on_step=lambda: None)

    together = go([42, 43], [0.0, 1.0])
    assert together.runs == [(42, 0.0), (42, 1.0), (43, 0.0), (43, 1.0)]
    assert torch.equal(numbers(together, [0, 1, 2, 3]), numbers(go([42, 43], [0.0, 1.0]), [0, 1, 2, 3]))
    alone, turned = numbers(go([43], [1.0]), [0]), numbers(go([43, 42], [0.0]), [0, 1])
    # up to rounding: where a row's length is no multiple of the vector unit's, its last entries round in another way
    torch.testing.assert_close(numbers(together, [3]), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(numbers(together, [2, 0]), turned, rtol=1e-4, atol=1e-5)
    for other in (1, 2):
        assert float((numbers(together, [other]) - alone).abs().max()) > 0.1


def test_gammas_of_one_seed_start_alike_and_then_part() -> None:
    outcome = study(SMALL, seeds=[5], gammas=[0.0, 1.0], iterations=2, on_step=lambda: None)
    assert outcome.distance[0, 0] == outcome.distance[0, 1]
    assert outcome.variance[0, 0] != outcome.variance[0, 1]
    assert not torch.equal(*outcome.students["left"].positions)


def test_a_run_that_is_not_finite_leaves_the_others_alone() -> None:
    students, teachers, e = policies(1, 2), policies(3, 4), noise(2, 8, 5)
    spoilt = students.pick([0, 1])
    spoilt.weights[0][0] = math.nan
    found = []
    for s in (students, spoilt.trainable()):
        paths = roll_out(s, LEFT, e)
        found.append(discounted_gradient(s, teachers, LEFT, paths, GAMMAS[:2], 4))
    clean, beside = found
    assert beside.gradients[0][0].isnan().all()
    for a, b in zip(clean.gradients, beside.gradients, strict=True):
        assert torch.equal(a[1], b[1])
    assert torch.equal(clean.variance[1], beside.variance[1])


def test_the_student_has_about_four_thousand_parameters() -> None:
    setting: Setting = instantiate(compose("toy", ToyConfig).setting)
    assert sum(w[0].numel() for w in setting.policies([stream(1)]).weights) == 4546
    assert replace(setting, activation="tanh").policies([stream(1)]).activation == "tanh"


def test_tanh_is_another_policy() -> None:
    relu = policies(1)
    state = (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    assert not torch.equal(relu(LEFT, *state)[0], replace(relu, activation="tanh")(LEFT, *state)[0])
