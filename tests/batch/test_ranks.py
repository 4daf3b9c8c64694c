"""The rows of a step on several ranks: dealt so that these finish together, and the batch of one process."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from opdlight.batch import ranks
from opdlight.batch.collate import Collate
from opdlight.batch.ranks import deal, over_ranks
from opdlight.system import distributed
from opdlight.system.distributed import all_gather_shares, share
from opdlight.types import SharedVocabulary, Status, TokenBatch, Trajectory, Turn

COLLATE = Collate(tasks=("a", "b"), shared=SharedVocabulary(10**6), micro_batch_tokens=64)


def made(groups: int, size: int, rng: random.Random) -> list[Trajectory]:
    """Trajectories of one to three rows; every token is another one, so that each is known again."""
    token = 0
    found = []
    for group in range(groups):
        for _ in range(size):
            turns = []
            for _ in range(rng.randint(1, 3)):
                prompt, completion = ([token := token + 1 for _ in range(rng.randint(1, 9))] for _ in range(2))
                turns.append(
                    Turn(prompt_ids=prompt, completion_ids=completion, sampled_logprobs=[-float(t) for t in completion],
                         finish_reason="stop", policy_version=0, reward=0.0)
                )  # fmt: skip
            reward = float(rng.randint(0, 2))
            found.append(Trajectory(task="ab"[group % 2], group=group, seed=group, turns=turns, reward=reward,
                                    status=Status.FAILURE))  # fmt: skip
    return found


def on_ranks(
    trajectories: list[Trajectory], collate: Collate, updates: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> list[list[list[TokenBatch]]]:
    """`over_ranks` of every rank, by update."""
    everything = [collate.rows(trajectory) for trajectory in trajectories]
    monkeypatch.setattr(ranks, "all_gather_shares", lambda mine: everything)
    monkeypatch.setattr(ranks, "world_size", lambda: count)
    found = []
    for number in range(count):
        monkeypatch.setattr(ranks, "rank", lambda number=number: number)
        found.append(over_ranks(trajectories[number::count], collate, updates))
    return [[rank[update] for rank in found] for update in range(updates)]


def positions(batches: list[TokenBatch]) -> list[tuple[float, ...]]:
    """All that a loss may read of each position, in the order of the tokens."""
    names = ("target_ids", "sampled_logprobs", "turn_index", "token_position", "task_index", "group_advantage")
    if not batches:
        return []
    return sorted(zip(*(torch.cat([getattr(b, name) for b in batches]).tolist() for name in names), strict=True))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("groups", "size", "count"), [(5, 3, 2), (3, 4, 4), (1, 2, 4)])
def test_the_ranks_together_have_the_updates_of_one_process(
    groups: int, size: int, count: int, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectories = made(groups, size, random.Random(groups))
    collate = replace(COLLATE, whole_trajectories=whole)
    owner = {i: n for n, t in enumerate(trajectories) for turn in t.turns for i in turn.completion_ids}
    alone = over_ranks(trajectories, collate, 2)
    for one, others in zip(alone, on_ranks(trajectories, collate, 2, count, monkeypatch), strict=True):
        every = [b for rank in others for b in rank]
        assert positions(every) == positions(one)
        assert {b.global_tokens for b in every} == {b.global_tokens for b in one}
        assert len({len(rank) for rank in others}) == 1  # collectives match
        homes = [{owner[i] for i in b.target_ids.tolist()} for b in every]
        assert not whole or len(set().union(*homes)) == sum(map(len, homes))  # each trajectory in one micro-batch
    advantages = {a for *_, a in positions([b for update in alone for b in update])}
    assert len(advantages) > 2 or groups == 1  # the groups were compared


def test_one_rank_has_what_collation_gives() -> None:
    trajectories = made(3, 2, random.Random(1))
    (one,), other = over_ranks(trajectories, COLLATE, 1), COLLATE(trajectories)
    assert len(one) == len(other) > 1
    for mine, theirs in zip(one, other, strict=True):
        for name in TokenBatch.__slots__:
            first, second = getattr(mine, name), getattr(theirs, name)
            assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.mark.parametrize("seed", range(20))
def test_the_slowest_rank_has_at_most_a_tenth_more_than_the_mean(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.choice([2, 3, 4, 8, 32])
    sizes = [min(16_384, 1 + int(rng.lognormvariate(7.5, 0.8))) for _ in range(128)]
    while 10 * max(sizes) > (mean := sum(sizes) / count):  # rows small enough: none is over a tenth of a share
        sizes += sizes
    shares = deal(sizes, count)
    assert sorted(place for mine in shares for place in mine) == list(range(len(sizes)))
    assert all(mine == sorted(mine) for mine in shares)  # as they came: one rank has what one process has
    assert max(sum(sizes[i] for i in mine) for mine in shares) <= 1.1 * mean


def test_long_rows_are_dealt_before_short_ones() -> None:
    assert deal([3, 3, 3, 9], 2) == [[3], [0, 1, 2]]  # as they come it would be 3 + 9 against 3 + 3


@pytest.mark.parametrize("packed", [True, False])
def test_ranks_compute_nearly_the_same_number_of_tokens(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the padding of their micro-batches, which nobody deals."""
    rng = random.Random(2)
    trajectories = made(16, 8, rng)
    collate = replace(COLLATE, packed=packed, whole_trajectories=False)
    (found,) = on_ranks(trajectories, collate, 1, 8, monkeypatch)
    tokens = [sum(b.model_tokens for b in rank) for rank in found]
    assert max(tokens) <= 1.1 * sum(tokens) / len(tokens)
    without = [sum(b.num_tokens == 0 for b in rank) for rank in found]
    assert max(without) <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_shares_come_together_in_the_order_of_one_process(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    items: list[Any] = [*range(6), None]
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    shares = []
    for number in range(count):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        shares.append(share(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    monkeypatch.setattr(distributed, "all_gather", lambda mine: shares)
    assert all_gather_shares(shares[0]) == items
