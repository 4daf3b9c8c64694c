"""Schedules and seeds."""

from collections import Counter

import pytest

from opdlight.data import OnPolicyData, OnPolicyDataset, Task, TaskMixture, held_out
from opdlight.envs.base import FIRST_HELD_OUT_SEED
from opdlight.errors import ConfigError


def mixture(schedule: str, **weights: float) -> TaskMixture:
    env = {"id": "opdlight/ToyText-v0"}
    return TaskMixture({n: Task(env=env, teacher="t", weight=w) for n, w in weights.items()}, schedule)  # type: ignore[arg-type]


def test_alternate_takes_turns_one_task_a_batch() -> None:
    tasks = [mixture("alternate", a=1, b=1).shares(step, 4) for step in range(4)]
    assert tasks == [{"a": 4}, {"b": 4}, {"a": 4}, {"b": 4}]


def test_alternate_follows_the_weights() -> None:
    m = mixture("alternate", a=3, b=1)
    counts = Counter(name for step in range(40) for name in m.shares(step, 1))
    assert counts == {"a": 30, "b": 10}


@pytest.mark.parametrize("groups", [1, 3, 16])
def test_mixed_fills_every_batch_and_follows_the_weights_over_time(groups: int) -> None:
    m = mixture("mixed", a=2, b=1)
    shares = [m.shares(step, groups) for step in range(30)]
    assert all(sum(s.values()) == groups for s in shares)
    assert sum(s.get("a", 0) for s in shares) == 20 * groups


def test_items_depend_on_seed_and_step_only_and_groups_share_their_seed() -> None:
    def items(seed: int) -> list:
        data = OnPolicyDataset(mixture("mixed", a=1, b=1), updates=5, groups=4, group_size=3, seed=seed)
        return [data[i] for i in range(len(data))]

    assert items(1) == items(1)
    assert items(1) != items(2)
    for requests in items(1):
        assert len({(r.task, r.seed, r.group) for r in requests}) == 4
        assert len(set(requests)) == 12
    seeds = [r.seed for item in items(1) for r in item if r.sample == 0]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < FIRST_HELD_OUT_SEED <= min(r.seed for r in held_out("a", 8))


def test_the_data_set_ends() -> None:
    data = OnPolicyDataset(mixture("mixed", a=1), updates=2, groups=1, group_size=1, seed=0)
    with pytest.raises(IndexError):
        data[2]


def test_validation_has_one_batch_a_task() -> None:
    data = OnPolicyData(mixture("mixed", a=1, b=1), updates=1, groups=1, group_size=1, seed=0)
    batches = list(data.val_dataloader())
    assert [{r.task for r in b} for b in batches] == [{"a"}, {"b"}]
    assert [len(b) for b in batches] == [128, 128]


def test_bad_mixtures_name_the_key() -> None:
    with pytest.raises(ConfigError, match=r"task\.tasks"):
        TaskMixture({})
