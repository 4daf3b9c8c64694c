"""Which figure tells early how a run ends: correlations against a slow reference, and what is read of a run."""

import csv
import math

import numpy as np
import pytest
import torch

from opdlight.report.arms.early_signs import at_a_third, correlations, early_signs, ranks, signs_csv
from opdlight.report.arms.outcomes import HeldOut, Ran
from opdlight.report.read import Curves


def spearman(x: list[float], y: list[float]) -> float:
    """Pearson's correlation of the ranks, by the sums of the definition."""

    def of(values: list[float]) -> list[float]:
        return [sum(v < w for v in values) + (sum(v == w for v in values) - 1) / 2 for w in values]

    a, b = of(x), of(y)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    top = sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
    return top / math.sqrt(sum((p - mean_a) ** 2 for p in a) * sum((q - mean_b) ** 2 for q in b))


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_both_correlations_are_those_of_the_definitions() -> None:
    generator = torch.Generator().manual_seed(1)
    arm, seed = torch.arange(6).repeat_interleave(5), torch.arange(5).repeat(6)
    third = normal(generator, 30) + arm
    values, ends = (normal(generator, 30) + third).round(), third + normal(generator, 30)  # the first with ties
    strength, beyond = correlations(values, ends, third, arm, seed, draws=400)
    xy, xz, yz = (spearman(a.tolist(), b.tolist()) for a, b in ((values, ends), (values, third), (ends, third)))
    assert strength.value == pytest.approx(xy)
    assert beyond.value == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)))
    for found in (strength, beyond):
        assert -1 <= found.low < found.value < found.high <= 1


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Arms, seeds and runs have normal effects on both sides, correlated by 0.5; Spearman's ρ is then (6/π) asin(¼)."""
    generator = torch.Generator().manual_seed(2)
    arm, seed = torch.arange(20).repeat_interleave(6), torch.arange(6).repeat(20)
    truth, hits, draws = 6 / math.pi * math.asin(0.25), 0, 100
    for _ in range(draws):
        x, other, z = normal(generator, 3, 20)[:, arm] + normal(generator, 3, 6)[:, seed] + normal(generator, 3, 120)
        strength, _ = correlations(x, 0.5 * x + math.sqrt(0.75) * other, z, arm, seed, draws=200)
        hits += strength.low <= truth <= strength.high
    assert hits / draws > 0.85


def test_ties_share_their_rank() -> None:
    assert ranks(torch.tensor([2.0, 7.0, 2.0, 1.0])).tolist() == [1.5, 3.0, 1.5, 0.0]


def curves(figure: list[float]) -> Curves:
    """As metrics.csv is read: an evaluation at step 0, and a row for each update."""
    updates, at = np.arange(len(figure)), np.zeros(1)
    return {
        "loss/train": (updates, np.full(len(figure), 0.5)),
        "kl/k1/sums": (updates, np.array(figure)),
        "kl/k1/other": (updates, np.ones(len(figure))),
        "rollout/rare/sums": (updates[:1], np.ones(1)),
        "val/success/sums": (at, at + 0.3),
        "time/rollout": (updates, np.array(figure)),
    }


def test_a_figure_is_read_from_the_first_third_of_the_updates() -> None:
    found = at_a_third(curves([1.0, 3.0, 10.0, 20.0, *[99.0] * 8]), 12)  # four updates: two and two
    assert found["kl/k1/sums", "level"] == 15.0 and found["kl/k1/sums", "change"] == 13.0
    assert {key for key, _ in found} == {"loss/train", "kl/k1/sums", "kl/k1/other"}


def ran(number: int) -> Ran:
    success = torch.tensor([[0.3], [0.5 + number % 2 / 10], [1 - number / 20]], dtype=torch.float64)
    return Ran(
        setting="s", arm=f"arm {number // 3}", seed=number % 3, folder=None, held_out={
            "sums": HeldOut(steps=[0, 2, 6], tokens=[0.0, 1.0, 3.0], episodes=[7], success=success),
            "other": HeldOut(steps=[0], tokens=[0.0], episodes=[7], success=success[:1]),
        },
        state="failed" if number == 11 else "finished", snr=math.nan, teachers={}, config={}, alarms=[], notes=[],
        curves=curves([0.0, float(number), *[5.0] * 4]),
    )  # fmt: skip


def test_signs_of_a_study() -> None:
    signs = early_signs([ran(number) for number in range(12)], draws=100)
    assert [(s.task, s.figure, s.kind, s.runs, s.arms) for s in signs] == [
        ("sums", "kl/k1/sums", "level", 11, 4), ("sums", "kl/k1/sums", "change", 11, 4),
    ]  # fmt: skip  # the others hardly vary, belong to another task, or were not logged in both halves
    assert signs[0].strength.value == pytest.approx(-1.0)
    lines = list(csv.DictReader(signs_csv(signs).splitlines()))
    assert lines[0]["strength"] == "-1.000" and lines[0]["quartile_low"] == "2.5"
    assert early_signs([ran(number) for number in range(5)], draws=100) == []  # too few
