"""Means of a few independent runs, with 95 % intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # Student t, 0.975, 1–10 d.f.


def student_t(freedom: int) -> float:
    """The 0.975 quantile of Student's t: from a table up to 10 degrees of freedom, above by its expansion in 1/ν.

    Source: Abramowitz and Stegun 26.7.5; correct to three decimals.

    >>> round(student_t(2), 3), round(student_t(30), 3)
    (4.303, 2.042)
    """
    if freedom < 1:
        raise ValueError(f"Expected argument `freedom` to be at least 1, but got {freedom}.")
    if freedom <= len(QUANTILES):
        return QUANTILES[freedom - 1]
    z, n = 1.959964, freedom
    second, third = 5 * z**5 + 16 * z**3 + 3 * z, 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z
    return z + (z**3 + z) / (4 * n) + second / (96 * n**2) + third / (384 * n**3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """Mean ± half the width of its 95 % interval; `half` is None for a single run."""

    mean: float
    half: float | None
    runs: int
    not_finite: int  # runs without a finite value; with any, mean and half are NaN

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """x̄ ± t_{0.975, n−1} s/√n of independent runs.

        >>> str(Mean.of([1.0, 2.0, 3.0]))
        '2.00 ± 2.48'
        """
        n, lost = len(values), sum(not math.isfinite(v) for v in values)
        if lost:
            return cls(mean=math.nan, half=math.nan, runs=n, not_finite=lost)
        mean = sum(values) / n
        if n == 1:
            return cls(mean=mean, half=None, runs=1, not_finite=0)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
        return cls(mean=mean, half=student_t(n - 1) * deviation / math.sqrt(n), runs=n, not_finite=0)

    def __str__(self) -> str:
        if self.not_finite:
            return f"{self.not_finite} of {self.runs} not finite"
        form = ".2f" if self.mean == 0 or 0.01 <= abs(self.mean) < 1000 else ".2g"
        return f"{self.mean:{form}}" if self.half is None else f"{self.mean:{form}} ± {self.half:{form}}"
