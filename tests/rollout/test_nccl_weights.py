"""When weights go over NCCL, who is told what in which order, and what an actor's death means; all on fakes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from opdlight.errors import ConfigError, EngineError
from opdlight.rollout import RayEngine, VLLMServerEngine
from opdlight.rollout.engines import ray_nccl, ray_pool, ray_start, vllm_start
from opdlight.rollout.engines.ray_nccl import Nccl
from opdlight.rollout.engines.ray_weights import ObjectStore
from tests.fake_server import FakeServer
from tests.rollout.fake_ray import FakeRay
from tests.rollout.fake_vllm import FakeGPUs
from tests.rollout.served import gap, generate, student
from tests.rollout.slow_engine import SlowEngine
from tests.rollout.test_ray_engine import alone, answers, requests, weights
from tests.rollout.test_ray_weights import RANKS, Ranks

WIRE: dict[str, torch.Tensor] = {}


class NcclEngine(SlowEngine):
    """What an actor needs of `VLLMEngine`: takes its weights from the wire, and says if a call comes out of order."""

    dtype = torch.bfloat16

    def __init__(self, model: str, *, weight_transfer: str, **ignored: Any) -> None:
        super().__init__(model)
        assert weight_transfer == "nccl"
        self.shapes = {name: (weight.shape, number) for number, (name, weight) in enumerate(weights(0.0))}
        self.calls: list[Any] = []

    def transfer(self, method: str, arguments: dict[str, Any]) -> None:
        self.calls.append(method if method != "init_weight_transfer_engine" else arguments["init_info"])
        if method == "update_weights":
            assert self.calls[-2] == "start_weight_update"
            info = arguments["update_info"]
            assert [str(WIRE[name].dtype) for name in info["names"]] == info["dtype_names"]
            assert [list(WIRE[name].shape) for name in info["names"]] == info["shapes"]
            self.weights = dict(WIRE)

    def adopt(self, policy_version: int) -> None:
        assert self.calls[-1] == "finish_weight_update"
        self.policy_version = policy_version


class FakeTrainer:
    """vLLM's trainer side: the same calls in the same order, and a dictionary for a wire."""

    def __init__(self, client: Any, source: Any, *, address: str, port: int, world_size: int, wire: Any = WIRE) -> None:
        self.client, self.source, self.wire, self.open = client, source, wire, True
        client.init_weight_transfer_engine({"master_address": address, "rank_offset": 1, "world_size": world_size})

    def send_weights(self) -> None:
        assert self.open
        meta = self.source.metadata()
        self.client.start_weight_update()
        self.wire.clear()
        self.wire.update(self.source)
        come = [(name, weight.dtype, tuple(weight.shape)) for name, weight in self.wire.items()]
        assert [(m.name, m.dtype, m.shape) for m in meta] == come
        info = {
            "names": [m.name for m in meta],
            "dtype_names": [str(m.dtype) for m in meta],
            "shapes": [list(m.shape) for m in meta],
        }
        self.client.update_weights(info)
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.open = False


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray, gpus = FakeRay(), FakeGPUs(monkeypatch, count=4, current=0)
    gpus.current = "cpu"  # type: ignore[assignment]  # where the fake's tensors are
    ray.broken = set()
    monkeypatch.setattr(FakeRay, "gpus", 8)
    monkeypatch.setattr(ray_start, "import_ray", lambda: ray)
    monkeypatch.setattr(vllm_start, "connect_nccl", FakeTrainer)
    monkeypatch.setattr(ray_pool, "VLLMEngine", NcclEngine)
    return ray


def test_both_sides_are_told_what_comes_and_each_actor_has_ranks_of_its_own(ray: FakeRay) -> None:
    pool = RayEngine("any", partial(NcclEngine), actors=3, num_gpus=2)
    for version in (1, 2):
        pool.update_weights(weights(float(version)), version)
        assert answers(pool, requests(9)) == alone(requests(9), float(version), version)
    update = ["start_weight_update", "update_weights", "finish_weight_update"]
    for number, handle in enumerate(ray.handles):
        engine = handle.actor.engine
        offset = {"master_address": "node", "rank_offset": 1 + 2 * number, "world_size": 1 + 3 * 2}
        assert engine.calls == [offset, *update, *update]
        assert {w.dtype for w in engine.weights.values()} == {torch.bfloat16}
    assert pool.stats()["update_bytes"] == 2 * 2 * sum(w.numel() for _, w in weights(1.0))
    assert ray.puts == 0


def test_the_first_process_sends_to_the_actors_of_all(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    monkeypatch.setattr(ray_nccl, "rank", ranks.rank)
    monkeypatch.setattr(ray_nccl, "all_gather", ranks.all_gather)
    pools = [RayEngine("any", NcclEngine, actors=1, num_gpus=1, address="auto") for _ in range(RANKS)]
    ranks.all(lambda rank: pools[rank].update_weights(weights(3.0), 1))
    for pool in pools:
        assert answers(pool, requests(9)) == alone(requests(9), 3.0, 1)
    assert [handle.actor.engine.calls[0]["rank_offset"] for handle in ray.handles] == [1, 2]


def test_an_actor_that_starts_later_works_after_the_next_publication(ray: FakeRay) -> None:
    pool = RayEngine("any", NcclEngine, actors=2, num_gpus=1)
    pool.update_weights(weights(1.0), 1)
    ray.handles[0].end()
    assert answers(pool, requests(9)) == alone(requests(9), 1.0, 1)
    new = ray.handles[2]
    assert set(new.asked) == {"start"}
    pool.update_weights(weights(2.0), 2)
    assert answers(pool, requests(9)) == alone(requests(9), 2.0, 2)
    assert new.asked.count("advance") > 1
    left = ray.handles[1].actor.engine.calls
    assert left[4] == "shutdown_weight_transfer_engine"  # of the group with the dead one
    assert {left[5]["rank_offset"], new.actor.engine.calls[0]["rank_offset"]} == {1, 2}
    assert left[5]["world_size"] == 3
    ray.handles[1].end()
    new.end()
    with pytest.raises(EngineError, match="All actors that had the weights have died"):
        answers(pool, requests(9))


def test_a_dead_actor_is_not_waited_for_and_one_that_dies_meanwhile_ends_the_run(ray: FakeRay) -> None:
    pool = RayEngine("any", NcclEngine, actors=2, num_gpus=1)
    ray.handles[0].end()  # between two rollouts: nobody has noticed
    pool.update_weights(weights(1.0), 1)
    assert pool.stats()["restarts"] == 1
    assert answers(pool, requests(9)) == alone(requests(9), 1.0, 1)
    ray.fate = lambda handle, method: "dies before" if method == "transfer" else "answers"
    with pytest.raises(EngineError, match=r"over NCCL.*engine\.transfer=object_store"):
        pool.update_weights(weights(2.0), 2)


def test_weights_that_do_not_fit_are_refused_before_anything_is_sent(ray: FakeRay) -> None:
    pool = RayEngine("any", NcclEngine, actors=2, num_gpus=1)
    with pytest.raises(EngineError, match="no weight 'unknown'"):
        pool.update_weights([*weights(1.0), ("unknown", torch.ones(1))], 1)
    assert not any(handle.actor.engine.calls for handle in ray.handles)


@pytest.mark.parametrize(
    ("gpus", "num_gpus", "engine", "transfer", "expected"),
    [
        (1, 1, NcclEngine, "auto", Nccl),
        (1, 2, partial(NcclEngine), "nccl", Nccl),
        (1, 1, NcclEngine, "object_store", ObjectStore),
        (1, 0, NcclEngine, "auto", ObjectStore),  # they share the trainer's GPU, where NCCL refuses a second rank
        (1, 0.5, NcclEngine, "auto", ObjectStore),
        (0, 1, NcclEngine, "auto", ObjectStore),
        (1, 1, SlowEngine, "auto", ObjectStore),
        (0, 1, NcclEngine, "nccl", None),
        (1, 0, NcclEngine, "nccl", None),
        (1, 1, SlowEngine, "nccl", None),
    ],
)
def test_nccl_is_chosen_where_both_sides_have_gpus_of_their_own(
    ray: FakeRay,
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    num_gpus: float,
    engine: Callable[..., Any],
    transfer: Any,
    expected: type | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)

    def choose() -> object:
        make = engine if expected is Nccl or engine is SlowEngine else partial(engine, weight_transfer="nccl")
        return RayEngine("any", make, actors=1, num_gpus=num_gpus, transfer=transfer)._transfer

    if expected is None:
        with pytest.raises(ConfigError, match=r"engine\.transfer.*got 'nccl'"):
            choose()
    else:
        assert type(choose()) is expected


SERVED = [
    "/update_weight_version",  # to a label that a restart would lose
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/reset_prefix_cache",
    "/weight_info",
    "/update_weight_version",
]


@pytest.fixture
def connected(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake.transfer = {"backend": "nccl"}
    FakeGPUs(monkeypatch, count=1, current=0).current = "cpu"  # type: ignore[assignment]
    monkeypatch.setattr(vllm_start, "connect_nccl", partial(FakeTrainer, wire=fake.wire))
    return fake


def test_a_server_that_takes_nccl_gets_its_weights_that_way(
    connected: FakeServer, start: Callable[..., VLLMServerEngine], tmp_path: Path
) -> None:
    engine = start()
    ((_, joined),) = [ask for ask in connected.asked if ask[0] == "/init_weight_transfer_engine"]
    assert joined["init_info"] == {"master_address": "127.0.0.1", "rank_offset": 1, "world_size": 3}
    assert gap(student(0), generate(engine)) < 1e-4  # the student's own, not the server's
    connected.asked.clear()
    engine.update_weights(student(3).state_dict().items(), 1)
    assert [path for path, _ in connected.asked] == SERVED
    found = generate(engine)
    assert gap(student(3), found) < 1e-4
    assert {c.policy_version for c in found} == {1}
    assert engine.stats()["update_bytes"] == sum(4 * w.numel() for w in student(3).state_dict().values())
    assert not (tmp_path / "w").exists()
    engine.close()
    assert connected.asked[-1][0] == "/shutdown_weight_transfer_engine"


def test_a_server_that_forgets_what_came_over_nccl_ends_the_run(
    connected: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start()
    connected.restart()
    with pytest.raises(EngineError, match=r"was restarted, and its weights came over NCCL.*Resume"):
        generate(engine)


def test_a_restart_while_weights_come_over_nccl_ends_the_run(
    connected: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start()
    connected.after_load = connected.restart
    with pytest.raises(EngineError, match=r"failed while it was sent weights over NCCL.*restarted"):
        engine.update_weights(student(3).state_dict().items(), 1)


def test_without_a_gpu_here_the_folder_is_used(
    fake: FakeServer, start: Callable[..., VLLMServerEngine], tmp_path: Path
) -> None:
    fake.transfer = {"backend": "nccl"}
    start()
    assert (tmp_path / "w").exists()
