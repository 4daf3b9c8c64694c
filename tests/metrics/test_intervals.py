"""Student's t against published values, and means of a single run or of runs that diverged."""

import math

import pytest

from opdlight.metrics.intervals import Mean, student_t


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
