"""Weights for the pools of several trainer processes: put into the object store once, loaded by the actors of all."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from opdlight.errors import ConfigError, EngineError
from opdlight.rollout import RayEngine
from opdlight.rollout.engines import ray_start, ray_weights
from opdlight.rollout.engines.ray_actor import EngineActor
from tests.rollout.fake_ray import FakeRay, Handle
from tests.rollout.slow_engine import SlowEngine
from tests.rollout.test_ray_engine import alone, answers, requests, weights

RANKS = 2


class Ranks:
    """Each rank of the trainer is a thread."""

    def __init__(self) -> None:
        self.me, self.meet, self.values = threading.local(), threading.Barrier(RANKS), dict[int, Any]()

    def rank(self) -> int:
        return getattr(self.me, "rank", 0)

    def all_gather(self, value: Any) -> list[Any]:
        self.values[self.rank()] = value
        self.meet.wait(60)
        found = [self.values[rank] for rank in range(RANKS)]
        self.meet.wait(60)
        return found

    def all(self, act: Callable[[int], Any]) -> list[Any]:
        """What the ranks do at the same time; an error of one ends the other's wait."""

        def go(rank: int) -> Any:
            self.me.rank = rank
            try:
                return act(rank)
            except BaseException:
                self.meet.abort()
                raise

        with ThreadPoolExecutor(RANKS) as threads:
            return [future.result() for future in [threads.submit(go, rank) for rank in range(RANKS)]]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> tuple[list[RayEngine], FakeRay, Ranks]:
    ray, ranks = FakeRay(), Ranks()
    ray.broken = set()
    monkeypatch.setattr(ray_start, "import_ray", lambda: ray)
    for name, found in {"rank": ranks.rank, "world_size": lambda: RANKS, "all_gather": ranks.all_gather}.items():
        monkeypatch.setattr(ray_weights, name, found)
    return [RayEngine("any", SlowEngine, actors=2, address="auto") for _ in range(RANKS)], ray, ranks


def engines(ray: FakeRay) -> list[Handle]:
    return [handle for handle in ray.handles if isinstance(handle.actor, EngineActor)]


def test_one_process_puts_and_the_actors_of_all_load(cluster: Any) -> None:
    pools, ray, ranks = cluster
    for version, value in [(1, 1.0), (2, 3.0)]:
        ranks.all(lambda rank: pools[rank].update_weights(weights(value), version))  # noqa: B023
        assert ray.puts == version
        for pool in pools:
            assert pool.policy_version == version
            assert answers(pool, requests(9)) == alone(requests(9), value, version)
    assert {handle.asked.count("load") for handle in engines(ray)} == {2}
    size = sum(w.numel() * w.element_size() for _, w in weights(1.0))
    assert [pool.stats()["update_bytes"] for pool in pools] == [2 * size, 2 * size]


@pytest.mark.parametrize("rank", range(RANKS))
def test_an_actor_that_starts_later_loads_what_the_others_have(cluster: Any, rank: int) -> None:
    pools, ray, ranks = cluster
    mine = engines(ray)[2 * rank : 2 * rank + 2]
    for version in (1, 2):
        ranks.all(lambda rank: pools[rank].update_weights(weights(float(version)), version))  # noqa: B023
        for handle in mine:
            handle.end()
        assert answers(pools[rank], requests(9)) == alone(requests(9), float(version), version)
        assert ray.puts == version
        mine = engines(ray)[-2:]
        assert [handle.asked[:2] for handle in mine] == [["start", "load"]] * 2
    ranks.all(lambda rank: pools[rank].update_weights(weights(3.0), 3))
    for pool in pools:
        assert answers(pool, requests(9)) == alone(requests(9), 3.0, 3)


def test_actors_that_die_while_they_load_are_replaced_by_their_own_pool(cluster: Any) -> None:
    pools, ray, ranks = cluster
    doomed = {1, 3}  # one of each pool
    ray.fate = lambda handle, method: "dies before" if handle.number in doomed and method == "load" else "answers"
    ranks.all(lambda rank: pools[rank].update_weights(weights(2.0), 5))
    for pool in pools:
        assert pool.stats()["restarts"] == 1
        assert answers(pool, requests(9)) == alone(requests(9), 2.0, 5)


def test_a_refusal_anywhere_is_one_everywhere_and_changes_nothing(cluster: Any) -> None:
    pools, ray, ranks = cluster
    ranks.all(lambda rank: pools[rank].update_weights(weights(1.0), 1))

    def refused(rank: int) -> bool:
        with pytest.raises(EngineError, match="no weight 'unknown'"):
            pools[rank].update_weights([*weights(2.0), ("unknown", torch.ones(1))], 2)
        return True

    assert ranks.all(refused) == [True, True]
    engines(ray)[-1].end()
    for pool in pools:
        assert pool.policy_version == 1
        assert answers(pool, requests(9)) == alone(requests(9), 1.0, 1)


def test_weights_are_sent_in_the_dtype_of_the_actors_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(SlowEngine):
        dtype = torch.bfloat16

    monkeypatch.setattr(ray_start, "import_ray", lambda: ray)
    ray = FakeRay()
    pool = RayEngine("any", Half, actors=1)
    pool.update_weights(weights(1.0), 1)
    assert {w.dtype for w in ray.handles[0].actor.engine.weights.values()} == {torch.bfloat16}
    assert pool.stats()["update_bytes"] == 2 * sum(w.numel() for _, w in weights(1.0))


def test_several_processes_need_a_cluster_that_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_start, "import_ray", FakeRay)
    monkeypatch.setattr(ray_start, "world_size", lambda: RANKS)
    with pytest.raises(ConfigError, match=r"engine\.address.*ray start --head.*got None"):
        RayEngine("any", SlowEngine)
