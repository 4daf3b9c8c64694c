"""Annotations of numbers that a config can set. No slow imports: a config is checked before torch is imported."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The interval in which a number of the config must lie, as metadata of `Annotated`. NaN and ±∞ are never allowed.

    Each of the four ends may be left out: `at_least` and `at_most` belong to the interval, `above` and `below` do not.

    >>> str(Bounds(at_least=1)), str(Bounds(above=0, at_most=1)), 0 in Bounds(above=0, at_most=1)
    ('≥ 1', 'in (0, 1]', False)
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low = self.above if self.at_least is None else self.at_least
        high = self.below if self.at_most is None else self.at_most
        if low is not None and high is not None:
            return f"in {'(' if self.at_least is None else '['}{low}, {high}{')' if self.at_most is None else ']'}"
        if low is not None:
            return f"{'>' if self.at_least is None else '≥'} {low}"
        return "" if high is None else f"{'<' if self.at_most is None else '≤'} {high}"


# Every number that a config can set is annotated with one of these or with an Annotated of its own.
PositiveInt = Annotated[int, Bounds(at_least=1)]
NonNegativeInt = Annotated[int, Bounds(at_least=0)]
PositiveFloat = Annotated[float, Bounds(above=0)]
NonNegativeFloat = Annotated[float, Bounds(at_least=0)]
UnitFloat = Annotated[float, Bounds(at_least=0, at_most=1)]
FiniteFloat = Annotated[float, Bounds()]
Seed = Annotated[int, Bounds(at_least=0, at_most=2**32 - 1)]  # what NumPy accepts
