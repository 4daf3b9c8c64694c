"""Intervals against published values, slow references and what they promise."""

import math

import pytest
import torch

from opdlight.metrics.intervals import Mean, chi_square, crossed_mean, paired_mean, spread, student_t


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (10, 2.228), (11, 2.201), (15, 2.131), (60, 2.000), (1000, 1.962)],
)
def test_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=6e-4)


def test_the_interval_is_t_times_the_standard_error() -> None:
    found = Mean.of([2.0, 4.0, 9.0])
    assert (found.mean, found.runs) == (5.0, 3)
    assert found.half == pytest.approx(4.303 * math.sqrt(13) / math.sqrt(3))
    assert str(found) == "5.00 ± 8.96"


def test_one_run_has_no_interval_and_a_lost_run_no_mean() -> None:
    assert str(Mean.of([0.5])) == "0.50"
    assert str(Mean.of([1.0, math.nan, math.inf])) == "2 of 3 not finite"
    assert str(Mean.of([1e-5, 3e-5, 2e-5])) == "2e-05 ± 2.5e-05"
    with pytest.raises(ValueError, match="Expected argument `freedom` to be at least 1, but got 0"):
        student_t(0)


def test_chi_square_quantiles_are_those_of_a_slow_integration_and_of_the_tables() -> None:
    def below(x: float, freedom: int) -> float:
        """The distribution function: the midpoint rule over √x, where the density is smooth."""
        steps = 20_000
        width = math.sqrt(x) / steps
        roots = ((i + 0.5) * width for i in range(steps))
        return (
            sum(2 * r ** (freedom - 1) * math.exp(-r * r / 2) for r in roots)
            * width
            / (2 ** (freedom / 2) * math.gamma(freedom / 2))
        )

    published = {(1, 0.975): 5.024, (2, 0.025): 0.0506, (4, 0.025): 0.484, (4, 0.975): 11.143, (19, 0.025): 8.907}
    for (freedom, share), quantile in published.items():
        assert chi_square(freedom, share) == pytest.approx(quantile, rel=2e-3)
        assert below(chi_square(freedom, share), freedom) == pytest.approx(share, rel=1e-6)


def test_the_spread_has_the_interval_of_a_standard_deviation() -> None:
    found = spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.value == pytest.approx(math.sqrt(2.5))
    assert (found.low, found.high) == pytest.approx(
        (found.value * math.sqrt(4 / 11.143), found.value * math.sqrt(4 / 0.4844)), rel=1e-3
    )
    assert math.isnan(spread([1.0]).value) and math.isnan(spread([]).low)
    assert spread([2.0, 2.0]).high == 0
    generator = torch.Generator().manual_seed(0)
    hits = [(s := spread(torch.randn(5, generator=generator).tolist())).low <= 1 <= s.high for _ in range(400)]
    assert 0.92 < sum(hits) / 400 < 0.98


def test_a_paired_mean_of_none_or_of_one() -> None:
    assert math.isnan(paired_mean([]).value)
    one = paired_mean([3.0])
    assert one.value == 3 and math.isnan(one.low)
    several = paired_mean([2.0, 4.0, 9.0])
    assert several.high - 5 == 5 - several.low == pytest.approx(8.957, abs=1e-3)


def test_intervals_over_seeds_and_episodes_hold_what_they_say() -> None:
    generator = torch.Generator().manual_seed(0)

    def covered(by_seed: float, by_episode: float) -> float:
        draws = 400
        hits = 0
        for _ in range(draws):
            seeds, episodes = (torch.randn(shape, generator=generator) for shape in ((5, 1), (1, 64)))
            rest = torch.randn(5, 64, generator=generator)
            found = crossed_mean(3 + by_seed * seeds + by_episode * episodes + rest)
            hits += found.low <= 3 <= found.high
        return hits / draws

    for effects in ((0.0, 0.0), (1.0, 0.1), (0.1, 1.0), (0.3, 0.3)):
        assert 0.92 < covered(*effects) < 0.99, effects


def test_the_interval_of_a_seed_effect_alone_is_student_t_over_seeds() -> None:
    means = torch.tensor([0.0, 1.0, 5.0])
    found = crossed_mean(means[:, None].expand(3, 40))
    half = 4.303 * float(means.std()) / math.sqrt(3)
    assert found.value == 2 and found.high - 2 == pytest.approx(half, rel=1e-3)
    assert math.isnan(crossed_mean(torch.ones(1, 40)).low)  # one seed says nothing about seeds


def test_the_variance_of_the_mean_is_that_of_seeds_and_of_episodes_together() -> None:
    # additive: MS_s = 4 · 7 = 28, MS_e = 3 · 20/3 = 20, MS_r = 0, degrees of freedom 48² / (28²/2 + 20²/3) = 4.4
    both = crossed_mean(torch.tensor([[0.0], [1.0], [5.0]]) + torch.tensor([0.0, 2.0, 4.0, 6.0]))
    assert both.high - both.value == pytest.approx(2.776 * math.sqrt(48 / 12), rel=1e-3)
    # MS_s = 32, MS_e = 0, MS_r = 8/3: the estimate for episodes is negative, so seeds alone count, with 1 degree
    seeds = crossed_mean(torch.tensor([[1.0, -1.0, 1.0, -1.0], [3.0, 5.0, 3.0, 5.0]]))
    assert seeds.high - seeds.value == pytest.approx(12.706 * math.sqrt(32 / 8), rel=1e-3)
