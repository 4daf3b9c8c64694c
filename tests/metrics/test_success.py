"""Success rates and their intervals against slow obvious references."""

import itertools
import math
from dataclasses import replace

import pytest

from opdlight.metrics.success import Result, outcome_rows, pass_at_k, success_interval, wilson_interval
from opdlight.types import Status, Trajectory


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 7), (50, 100), (1, 1000)])
def test_wilson_bounds_solve_the_score_equation(k: int, n: int) -> None:
    p = k / n
    for bound in wilson_interval(k, n):
        if 0 < bound < 1:  # |p − b| = z √(b(1−b)/n) defines the interval
            assert abs(p - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / n), rel=1e-9)
    low, high = wilson_interval(k, n)
    assert 0 <= low <= p <= high <= 1


def test_interval_of_repeated_samples() -> None:
    single = success_interval([[1.0]] * 30 + [[0.0]] * 70)
    assert single == (0.3, wilson_interval(30, 100))
    identical = success_interval([[1.0] * 8] * 30 + [[0.0] * 8] * 70)  # eight copies tell nothing new
    assert identical[1] == pytest.approx(single[1], abs=0.01)
    mixed = success_interval(
        [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]] * 25
    )
    independent = wilson_interval(125, 400)
    assert mixed[1][1] - mixed[1][0] <= (independent[1] - independent[0]) * 1.05


def test_pass_at_k_is_the_share_of_all_choices_of_k_attempts_with_a_solved_one() -> None:
    for n in range(1, 7):
        for solved in range(n + 1):
            attempts = [1] * solved + [0] * (n - solved)
            for k in range(1, n + 1):
                choices = list(itertools.combinations(attempts, k))
                assert pass_at_k(n, solved, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    for wrong in ((4, 2, 5), (4, 5, 1), (4, -1, 1), (4, 2, 0)):
        with pytest.raises(ValueError, match="Expected 1 ≤ k ≤ n"):
            pass_at_k(*wrong)


def trajectories(*episodes: str) -> list[Trajectory]:
    """One episode a text, one attempt a letter: s is solved."""
    return [
        Trajectory(task="t", group=seed, seed=seed, turns=[], reward=float(letter == "s"),
                   status=Status.SUCCESS if letter == "s" else Status.FAILURE)
        for seed, letters in enumerate(episodes) for letter in letters
    ]  # fmt: skip


def test_a_result_counts_each_episode_once_however_often_it_was_tried() -> None:
    even = Result.of(trajectories("ssff", "sfff", "ffff", "ssss"))
    assert (even.episodes, even.samples, even.title) == (4, 4, "avg@4")
    assert even.success == even.reward == pytest.approx((0.5 + 0.25 + 0 + 1) / 4)
    assert list(even.pass_at) == [1, 2, 4]
    assert even.pass_at[1] == pytest.approx(even.success)
    assert even.pass_at[2] == pytest.approx((5 / 6 + 1 / 2 + 0 + 1) / 4)
    assert even.pass_at[4] == 0.75
    uneven = Result.of(trajectories("sssss", "ffff", "fffff"))
    assert (uneven.episodes, uneven.samples) == (3, 4)
    assert uneven.success == pytest.approx(1 / 3)
    one = Result.of(trajectories(*"sffs"))
    assert (one.samples, one.title, one.pass_at) == (1, "pass@1", {1: 0.5})
    assert list(Result.of(trajectories("sffsss")).pass_at) == [1, 2, 4, 6]
    copies = Result.of(trajectories(*["s" * 8] * 30, *["f" * 8] * 70))  # eight copies tell nothing new
    assert copies.high - copies.low == pytest.approx(
        wilson_interval(30, 100)[1] - wilson_interval(30, 100)[0], abs=0.02
    )


def test_shares_of_actions_are_over_the_actions_of_all_trajectories() -> None:
    made = [
        replace(t, metrics={"admissible_actions": a, "inadmissible_actions": i, "unparsable_actions": u, **more})
        for t, (a, i, u, more) in zip(
            trajectories("s", "f", "ff"),
            [(3, 0, 0, {}), (1, 2, 1, {}), (10, 0, 0, {"ineffective_actions": 4}), (3, 0, 0, {})],
            strict=True,
        )
    ]
    result = Result.of([*made, *trajectories("f")])  # the last one was not judged
    assert result.admissible_actions == 17 / 20
    assert result.wasted_actions == 7 / 20
    assert result.actions == "admissible actions 85.0 %, wasted 35.0 %"
    unjudged = Result.of(trajectories("s"))
    assert (unjudged.admissible_actions, unjudged.wasted_actions, unjudged.actions) == (None, None, "")
    seeds = outcome_rows(made)[:, 0].tolist()
    assert outcome_rows(made).tolist() == [
        [seeds[0], 1, 1, 0, 3, 3, 0], [seeds[1], 0, 0, 0, 4, 1, 3], [seeds[2], 0, 0, 0, 10, 10, 4],
        [seeds[3], 0, 0, 0, 3, 3, 0],
    ]  # fmt: skip
    assert Result.of_rows(outcome_rows(made)[[2, 0, 3, 1]]) == Result.of(made)
