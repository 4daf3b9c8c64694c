"""The estimator study against the enumeration of all sequences."""

import csv
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opdlight.config import EstimatorsConfig, compose
from opdlight.lab.estimators import chains
from opdlight.lab.estimators.rows import Row, growth, statistics
from opdlight.lab.estimators.study import study
from opdlight.lab.estimators.trajectories import figures
from opdlight.losses import Loss, SampledToken, SupportMatching

V, T = 3, 4


def all_sequences(student: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """States, tokens and probability of every sequence."""
    tokens = torch.tensor(list(itertools.product(range(V), repeat=T)))
    states = torch.cat([torch.full((len(tokens), 1), V), tokens[:, :-1]], 1)
    log_pi = student.log_softmax(-1)[states].gather(2, tokens.unsqueeze(2)).squeeze(2)
    return states, tokens, log_pi.sum(1).exp()


def expectation(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    states, tokens, probability = all_sequences(student)
    each = chains.gradients(loss, student, teacher, states, tokens)
    return (probability[:, None] * each).sum(0).view(V + 1, V)


def test_exact_gradients_are_those_of_the_kl_summed_over_all_sequences() -> None:
    student, teacher = chains.random_pair(V, 0.7, 1)
    theta = student.clone().requires_grad_()
    states, tokens, _ = all_sequences(student)
    log_pi, log_q = (
        table.log_softmax(-1)[states].gather(2, tokens.unsqueeze(2)).sum((1, 2)) for table in (theta, teacher)
    )
    (expected,) = torch.autograd.grad((log_pi.exp() * (log_pi - log_q)).sum(), theta)
    torch.testing.assert_close(chains.sequence_gradients(student, teacher, T)[0], expected)


def test_estimators_average_to_what_they_aim_at() -> None:
    student, teacher = chains.random_pair(V, 0.7, 1)
    exact, frozen = chains.sequence_gradients(student, teacher, T)
    torch.testing.assert_close(expectation(SampledToken(gamma=1.0), student, teacher), exact)
    tail = SupportMatching(k=2, outside="sampled_tail", divergence="stop_gradient")
    for loss in (SampledToken(), SupportMatching(support="full_vocabulary"), tail):
        torch.testing.assert_close(expectation(loss, student, teacher), frozen)
    for loss in (SampledToken(gamma=0.5), SupportMatching(k=2)):
        assert (expectation(loss, student, teacher) - frozen).norm() > 0.01 * frozen.norm()
        assert (expectation(loss, student, teacher) - exact).norm() > 0.01 * exact.norm()


def test_every_sequence_gets_its_own_gradient() -> None:
    student, teacher = chains.random_pair(V, 0.7, 2)
    states, tokens, _ = all_sequences(student)
    loss = SampledToken(gamma=0.5)
    together = chains.gradients(loss, student, teacher, states, tokens)
    for i in (0, 17, 80):
        alone = chains.gradients(loss, student, teacher, states[i : i + 1], tokens[i : i + 1])
        torch.testing.assert_close(together[i], alone[0])


def test_sampled_sequences_follow_the_student() -> None:
    student, _ = chains.random_pair(V, 0.7, 3)
    states, tokens = chains.sample(student, 40_000, 2, torch.Generator().manual_seed(0))
    assert (states[:, 0] == V).all()
    assert torch.equal(states[:, 1], tokens[:, 0])
    first = student.softmax(-1)[V]
    second = (first[:, None] * student.softmax(-1)[:V]).flatten()
    pairs = tokens[:, 0] * V + tokens[:, 1]
    torch.testing.assert_close(torch.bincount(pairs, minlength=V * V) / 40_000, second.float(), atol=0.01, rtol=0)


def test_statistics_take_the_noise_of_the_mean_off() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    each = true + 3 * torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    found = statistics(each, true, true + 1)
    assert found["variance"] == pytest.approx(27, rel=0.02)
    assert found["second_moment"] == pytest.approx(27 + 5.25, rel=0.02)
    assert found["snr"] == pytest.approx(5.25 / 27, rel=0.05)
    assert found["sequence_bias"] < 0.01
    assert found["token_bias"] == pytest.approx(3**0.5 / float((true + 1).norm()), rel=0.02)


def test_the_intervals_of_real_trajectories_cover_the_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    true, exact = torch.zeros(50), torch.zeros(50)
    true[0] = exact[0] = 1.0
    exact[1] = 1.0  # the cosine of the two is 1/√2
    inside = []
    for _ in range(150):
        noise = torch.randn(48, 50, generator=generator) * 0.1
        found = figures(true + noise, exact + noise.roll(1, 1))
        snr, cosine = 1 / (50 * 0.1**2), 0.5**0.5
        near = (abs(found["snr"] - snr) < found["snr_half"], abs(found["cosine"] - cosine) < found["cosine_half"])
        inside.append([float(x) for x in near])
    share = torch.tensor(inside).mean(0)
    assert ((share > 0.88) & (share < 0.995)).all(), share
    assert figures(noise, noise) == {
        "snr": pytest.approx(0.0, abs=0.02),
        "snr_half": pytest.approx(0.02, abs=0.02),
        "cosine": pytest.approx(1.0),
        "cosine_half": pytest.approx(0.0, abs=1e-5),
    }


def test_growth_is_the_exponent() -> None:
    rows = [
        Row(
            estimator="x",
            length=t,
            seed=s,
            second_moment=s * t**4,
            variance=s * t**2.5,
            snr=1,
            sequence_bias=0,
            token_bias=0,
        )
        for t in (1, 2, 4, 8, 16)
        for s in (1, 2)
    ]
    found = growth(rows, "x", "variance", 4)
    assert (found.mean, found.half) == (pytest.approx(2.5), pytest.approx(0.0, abs=1e-9))
    assert growth(rows, "x", "second_moment", 1).mean == pytest.approx(4.0)


def test_the_study_writes_its_table_and_figure(tmp_path: Path) -> None:
    overrides = ["episodes=0", "lengths=[1,2,4]", "seeds=[1,2]", "sequences=64", "k=2", "vocabulary=4"]
    seconds = study(compose("estimators", EstimatorsConfig, [*overrides, f"run_dir={tmp_path}"]))
    assert seconds["seconds"] > 0
    with (tmp_path / "chains.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 * 3 * 2
    assert {row["length"] for row in rows} == {"1", "2", "4"}
    assert (tmp_path / "estimators.png").stat().st_size > 10_000
