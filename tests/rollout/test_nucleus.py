"""The nucleus without a sort against a plain float64 one, ties and odd rows included."""

import math

import numpy as np
import pytest
import torch

from opdlight.rollout.engines.nucleus import keep_nucleus, nucleus

ROUNDING = 1e-6  # of masses that float32 probabilities make up


def ordered(row: torch.Tensor) -> tuple[list[int], list[float]]:
    """All ids, most probable first and low before high, and the probabilities of all tokens, in float64."""
    z = row.tolist()
    weights = [math.exp(v - max(z)) for v in z]
    total = math.fsum(weights)
    return sorted(range(len(z)), key=lambda i: (-z[i], i)), [w / total for w in weights]


def kept(row: torch.Tensor, top_p: float) -> list[int]:
    masked = keep_nucleus(row[None].clone(), {0: top_p})[0]
    ids = masked.isfinite().nonzero()[:, 0]
    assert torch.equal(masked[ids], row[ids])  # bit by bit
    return ids.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # the model's; in bfloat16 many logits are equal
@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 8.0])
def test_it_is_the_smallest_set_of_most_probable_tokens(spread: float, top_p: float, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(1)
    for row in (torch.randn(6, 300, generator=random) * spread).to(dtype).float():
        row[torch.randperm(300, generator=random)[:40]] = -torch.inf  # ids that cannot be drawn
        ids = kept(row, top_p)
        order, probabilities = ordered(row)
        assert ids == sorted(order[: len(ids)])
        mass = math.fsum(probabilities[i] for i in ids)
        assert mass - probabilities[order[len(ids) - 1]] - ROUNDING < top_p < mass + ROUNDING


@pytest.mark.parametrize(
    ("weights", "top_p", "expected"),
    [
        ([1, 4, 2, 1], 0.49, [1]),
        ([1, 4, 2, 1], 0.51, [1, 2]),
        ([1, 4, 2, 1], 0.76, [0, 1, 2]),  # of two equal ones, that of the lower id
        ([1, 4, 2, 1], 0.9, [0, 1, 2, 3]),
        ([2, 2, 1, 2, 1], 0.6, [0, 1, 3]),  # fits without a choice
        ([1, 1, 1, 1], 0.3, [0, 1]),
        ([0, 0, 1, 0], 0.9, [2]),
        ([1e6, 1, 1, 1], 1 - 1e-7, [0, 1, 2, 3]),
        ([3], 0.2, [0]),
    ],
)
def test_by_hand(weights: list[float], top_p: float, expected: list[int]) -> None:
    assert kept(torch.tensor(weights, dtype=torch.float32).log(), top_p) == expected


def test_the_most_probable_tokens_that_hold_just_the_mass_are_enough() -> None:
    assert nucleus(np.array([0.25, 0.5, 0.25], np.float32), 0.5).tolist() == [1]


def test_roundings_of_many_small_masses_do_not_add_up() -> None:
    small = 485_437  # tokens of 1.03e-6 each, of which a float32 sum above 0.5 takes 1.01e-6
    probabilities = np.array([0.5, *[0.5 / small] * small], np.float32)
    expected = 1 + math.ceil(0.4 / float(probabilities[1]))
    assert abs(len(nucleus(probabilities, 0.9)) - expected) <= 1


def test_each_row_has_its_own_mass_and_those_without_one_stay() -> None:
    logits = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0]).log().repeat(5, 1)
    logits[3, 2] = torch.nan
    wide = torch.cat([logits, torch.zeros(5, 3)], dim=1)[:, :5]  # rows with gaps between them, as of a padded head
    masked = keep_nucleus(wide, {2: 0.4, 0: 0.7, 3: 0.5})
    assert masked is wide
    assert masked.isfinite().sum(-1).tolist() == [2, 5, 1, 4, 5]  # a row with a NaN stays, for others to report
    assert torch.equal(masked[[1, 4]], logits[[1, 4]])
    assert keep_nucleus(logits, {}) is logits


def test_draws_have_the_distribution_of_the_float64_nucleus() -> None:
    """χ² of 100,000 draws, for rows from nearly flat to nearly certain."""
    random = torch.Generator().manual_seed(2)
    for spread, top_p in ((0.3, 0.8), (1.5, 0.9), (4.0, 0.9)):
        row = torch.randn(200, generator=random) * spread
        masked = keep_nucleus(row[None].clone(), {0: top_p})[0]
        drawn = torch.multinomial(masked.softmax(-1), 100_000, replacement=True, generator=random)
        order, probabilities = ordered(row)
        size = int(np.searchsorted(np.cumsum([probabilities[i] for i in order]), top_p)) + 1
        expected = np.array([probabilities[i] for i in order[:size]])
        counts = drawn.bincount(minlength=200).numpy()[order]
        assert not counts[size:].any()
        expected *= 100_000 / expected.sum()
        squares = ((counts[:size] - expected) ** 2 / expected).sum()
        chance = torch.special.gammaincc(torch.tensor((size - 1) / 2), torch.tensor(squares / 2))  # of more than this
        assert chance > 0.01
