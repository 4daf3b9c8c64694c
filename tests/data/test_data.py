"""Shares of tasks, seeds of episodes, and the requests of training and evaluation."""

import random
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from opdlight.data import tasks as data
from opdlight.data.requests import OnPolicyData, OnPolicyDataset, held_out
from opdlight.data.tasks import Task, TaskMixture
from opdlight.envs.base import FIRST_HELD_OUT_SEED, TextEnv
from opdlight.errors import ConfigError


class Rows(TextEnv):
    """So many training and held-out rows."""

    def __init__(self, training: int = 0, held_out: int = 0) -> None:
        super().__init__()
        self.training_episodes, self.held_out_episodes = training, held_out


gymnasium.register(id="test/Rows-v0", entry_point=Rows, disable_env_checker=True, order_enforce=False)


def rows_task(training: int = 0, held_out: int = 0, **more: Any) -> Task:
    env = {"id": "test/Rows-v0", "training": training, "held_out": held_out}
    return Task(env=env, **{"teacher": "t" if training else None, "weight": float(training > 0), **more})


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


def dealt_slowly(weights: list[str], units: int) -> list[int]:
    """Which task gets each unit: the one furthest below its share, in exact fractions, from the start."""
    shares = [Fraction(w) / sum(map(Fraction, weights)) for w in weights]
    counts, chosen = [0] * len(weights), []
    for n in range(1, units + 1):
        behind = [share * n - count for share, count in zip(shares, counts, strict=True)]
        chosen.append(behind.index(max(behind)))
        counts[chosen[-1]] += 1
    return chosen


def some_weights() -> list[list[str]]:
    chance = random.Random(0)
    found = [["2", "1"], ["1"], ["1", "1", "1"], ["7", "3"], ["0.7", "0.3"], ["0.123457", "1"], ["1e-3", "1"]]
    return found + [[str(round(chance.uniform(0.1, 5), chance.randint(0, 3)) or 1) for _ in range(n % 5 + 2)]
                    for n in range(5)]  # fmt: skip


@pytest.mark.parametrize("weights", some_weights(), ids=str)
def test_shares_are_those_of_dealing_one_by_one(weights: list[str]) -> None:
    names = [f"t{i}" for i in range(len(weights))]
    chosen = [names[i] for i in dealt_slowly(weights, 360)]
    given = {name: float(w) for name, w in zip(names, weights, strict=True)}
    alternate = mixture("alternate", **given)
    assert [alternate.shares(step, 3) for step in range(360)] == [{name: 3} for name in chosen]
    for groups in (1, 7):
        mixed = mixture("mixed", **given)
        steps = [*range(350 // groups)]
        random.Random(1).shuffle(steps)  # a function of the step alone
        for step in [*steps, *sorted(steps)]:
            assert mixed.shares(step, groups) == Counter(chosen[step * groups : (step + 1) * groups])


def test_the_main_job_takes_turns_as_ever() -> None:
    taken = [next(iter(mixture("alternate", sums=2, alfworld=1).shares(step, 48))) for step in range(66)]
    assert taken == ["sums", "alfworld", "sums"] * 22


@pytest.mark.parametrize("weights", [(2, 1), (0.7, 0.3), (0.1234567, 1)], ids=str)
def test_a_late_step_is_no_more_work_than_an_early_one(
    weights: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(data, "max", lambda *a, **k: calls.append(1) or max(*a, **k), raising=False)
    mixed, work = mixture("mixed", a=weights[0], b=weights[1]), []
    for step in range(300):
        before = len(calls)
        mixed.shares(step, 128)
        work.append(len(calls) - before)
    assert max(work) <= 2 * 128 + 4  # before, units were dealt step × 128 times
    if weights != (0.1234567, 1):
        before = len(calls)
        mixed.shares(5000, 128)
        assert len(calls) - before <= 24  # also where nothing was asked before


def test_training_rows_come_in_a_new_order_each_epoch_and_none_again_before_all_have_come() -> None:
    def walk(seed: int = 1, **tasks: Task) -> dict[str, list[int]]:
        whole = OnPolicyDataset(TaskMixture(tasks, "mixed"), updates=60, groups=5, group_size=2, seed=seed)
        seen: dict[str, list[int]] = {name: [] for name in tasks}
        for step in range(60):
            for request in whole[step]:
                if request.sample == 0:
                    seen[request.task].append(request.seed)
        return seen

    tasks = {"a": rows_task(30, weight=2.0), "b": rows_task(7, weight=1.0)}
    seen = walk(**tasks)
    for name, count in (("a", 30), ("b", 7)):
        drawn = seen[name]
        assert len(drawn) == (200 if name == "a" else 100)
        epochs = [drawn[i : i + count] for i in range(0, len(drawn) - count + 1, count)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert all(one != other for one, other in pairwise(epochs))
    assert walk(**tasks) == seen
    assert walk(2, **tasks) != seen
    assert walk(**{**tasks, "a": rows_task(30, weight=1.0)})["a"] == seen["a"][:150]  # its own count, not the step's


def test_the_walk_is_a_function_of_the_step_alone() -> None:
    tasks = {"a": rows_task(30), "b": rows_task(7)}

    def items() -> OnPolicyDataset:
        return OnPolicyDataset(TaskMixture(tasks), updates=40, groups=4, group_size=2, seed=1)

    forward = [items()[step] for step in range(40)]
    late = items()
    assert [late[step] for step in reversed(range(40))] == forward[::-1]
    assert late.epochs(40) == {"a": 80 / 30, "b": 80 / 7}
    assert OnPolicyDataset(mixture("mixed", a=1), updates=1, groups=1, group_size=1, seed=0).epochs(1) == {}


def test_every_held_out_row_once_and_as_often_as_samples_says() -> None:
    found = held_out("m", rows_task(held_out=30, episodes=None, samples=4))
    assert sorted(r.seed for r in found if r.sample == 0) == [FIRST_HELD_OUT_SEED + i for i in range(30)]
    assert len(set(found)) == len(found) == 120
    assert Counter(r.sample for r in found) == dict.fromkeys(range(4), 30)
    some = held_out("m", rows_task(held_out=30, episodes=8))
    assert len({r.seed for r in some}) == 8
    assert [r.seed for r in some] != sorted(r.seed for r in some)  # not the first rows of a file that may be sorted
    assert some == [r for r in found if r.sample == 0][:8]


def test_rows_that_repeat_unevenly_are_told_once_and_count_as_one_row(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        found = held_out("uneven", rows_task(held_out=30, episodes=128))
    assert Counter(Counter(r.seed for r in found).values()) == {4: 22, 5: 8}
    assert len({(r.seed, r.group) for r in found}) == 30
    assert len(set(found)) == 128
    assert caplog.text.count("each row 4 or 5 times") == 1
    assert "task.tasks.uneven.episodes" in caplog.text
    caplog.clear()
    assert len(held_out("even", rows_task(held_out=30, episodes=60))) == 60
    assert not caplog.text


def test_episodes_null_needs_rows() -> None:
    with pytest.raises(ConfigError, match=r"`task\.tasks\.s\.episodes` to be a number.*opdlight/ToyText-v0"):
        held_out("s", Task(env={"id": "opdlight/ToyText-v0"}, episodes=None))


def test_a_task_of_weight_0_is_only_evaluated_and_needs_no_teacher() -> None:
    tasks = {"a": rows_task(30, 9, episodes=4), "b": rows_task(held_out=5, episodes=None, samples=2)}
    whole = OnPolicyData(TaskMixture(tasks, "mixed"), updates=9, groups=2, group_size=1, seed=0)
    assert {r.task for step in range(9) for r in whole.train_set[step]} == {"a"}
    assert [len(batch) for batch in whole.val_dataloader()] == [4, 10]
    assert TaskMixture(tasks).teachers == {"a": "t"}


def test_the_held_out_questions_of_a_file_are_never_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"question": "{n}?", "answer": {n}}}\n' for n in range(50)))
    task = Task(env={"id": "opdlight/MathDataset-v0", "path": str(path)}, teacher="t", episodes=None)
    whole = OnPolicyData(TaskMixture({"m": task}), updates=20, groups=5, group_size=1, seed=0)
    env = task.make_env()
    (requests,) = whole.val_dataloader()
    evaluated = {env.reset(seed=r.seed)[0] for r in requests}
    trained = {env.reset(seed=r.seed)[0] for step in range(20) for r in whole.train_set[step]}
    assert len(evaluated | trained) == 50
    assert not evaluated & trained


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
    task = Task(env={"id": "opdlight/ToyText-v0"}, episodes=8)
    assert max(seeds) < FIRST_HELD_OUT_SEED
    assert [r.seed - FIRST_HELD_OUT_SEED for r in held_out("a", task)] == list(range(8))


def test_the_data_set_ends() -> None:
    data = OnPolicyDataset(mixture("mixed", a=1), updates=2, groups=1, group_size=1, seed=0)
    with pytest.raises(IndexError):
        data[2]


def test_validation_has_one_batch_a_task() -> None:
    data = OnPolicyData(mixture("mixed", a=1, b=1), updates=1, groups=1, group_size=1, seed=0)
    batches = list(data.val_dataloader())
    assert [{r.task for r in b} for b in batches] == [{"a"}, {"b"}]
    assert [len(b) for b in batches] == [128, 128]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (rows_task(3, teacher=None), r"`task\.tasks\.a\.teacher`.*a model"),
        (rows_task(0, 3, weight=1.0, teacher="t"), r"`task\.tasks\.a\.env`.*with training episodes"),
        (rows_task(3, 0), r"`task\.tasks\.a\.env`.*with held-out episodes"),
        (rows_task(0, 3), r"`task\.tasks`.*positive weight"),
    ],
)
def test_bad_mixtures_name_the_key(task: Task, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OnPolicyData(TaskMixture({"a": task}), updates=1, groups=1, group_size=1, seed=0)


def test_a_mixture_of_nothing() -> None:
    with pytest.raises(ConfigError, match=r"task\.tasks"):
        TaskMixture({})
