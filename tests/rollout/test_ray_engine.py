"""The Ray pool: on a fake Ray, where tests decide who dies when, and on the real one."""

import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from opdlight.errors import ConfigError, EngineError, MissingDependencyError
from opdlight.rollout import Completion, Engine, RayEngine, Request, Sampling
from opdlight.rollout.engines import ray_pool as ray_engine
from opdlight.rollout.engines import ray_start
from opdlight.rollout.engines.base import NO_WEIGHTS
from opdlight.rollout.engines.ray_weights import NAMESPACE
from tests.rollout.fake_ray import FakeRay, Fate, Handle
from tests.rollout.fake_vllm import FakeGPUs
from tests.rollout.slow_engine import DEADLY, REFUSED, SlowEngine

Answer = tuple[str, list[int], int]


def requests(count: int, *, first: int = 0) -> list[Request]:
    return [request(str(i), prompt=[i, i + 1], max_tokens=1 + i % 7) for i in range(first, first + count)]


def request(name: str, *, prompt: list[int], max_tokens: int = 3) -> Request:
    return Request(request_id=name, prompt_ids=prompt, max_tokens=max_tokens, sampling=Sampling(), seed=len(name))


def answers(
    engine: Engine, asked: Sequence[Request], meanwhile: Callable[[list[Completion]], None] = lambda found: None
) -> list[Answer]:
    """Sorted; requests join while others run."""
    found: list[Completion] = []
    waiting, steps = list(asked), 0
    while waiting or engine.has_unfinished():
        for one in waiting[:5]:
            engine.add_request(one)
        del waiting[:5]
        found += engine.step()
        meanwhile(found)
        steps += 1
        assert steps < 5_000, "requests were lost"
    return sorted((c.request_id, c.token_ids, c.policy_version) for c in found)


def alone(asked: Sequence[Request], weight: float | None = None, version: int = 0) -> list[Answer]:
    engine = SlowEngine("any")
    if weight is not None:
        engine.update_weights(weights(weight), version)
    return answers(engine, asked)


def weights(value: float) -> list[tuple[str, torch.Tensor]]:
    return [
        ("matrix", torch.full((2, 3), value).t()),  # not contiguous
        ("half", torch.full((3,), value, dtype=torch.bfloat16)),
        ("scalar", torch.tensor(value)),
    ]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RayEngine, FakeRay]]:
    def make(
        fate: Callable[[Handle, str], Fate] = lambda handle, method: "answers", model: str = "any", **arguments: Any
    ) -> tuple[RayEngine, FakeRay]:
        ray = FakeRay(fate)
        monkeypatch.setattr(ray_start, "import_ray", lambda: ray)
        return RayEngine(model, SlowEngine, **{"actors": 3, **arguments}), ray

    return make


@pytest.mark.parametrize("seed", range(20))
def test_whoever_dies_whenever_each_request_is_answered_once_and_as_by_one_engine(played: Any, seed: int) -> None:
    """Before or after it has finished something, while it starts, decodes or takes weights; over several updates."""
    luck = random.Random(seed)
    often = luck.choice([0.0, 0.01, 0.03])

    def fate(handle: Handle, method: str) -> Fate:
        if luck.random() < often and handle.number > 2:
            return luck.choice(["dies before", "dies after"])
        if handle.number > 2 and method == "start":
            return luck.choice(["answers", "waits"])
        return "answers"

    pool, ray = played(fate)
    ray.handles[luck.randrange(3)].end()  # one is dead already
    asked = requests(60)
    assert answers(pool, asked) == alone(asked)
    for version, value in [(4, 1.0), (9, 2.0)]:
        pool.update_weights(weights(value), version)
        if luck.random() < 0.5:
            ray.handles[-1].end()
        assert answers(pool, asked) == alone(asked, value, version)
    assert pool.policy_version == 9
    stats = pool.stats()
    assert stats["restarts"] == len(ray.handles) - 3 >= 1
    assert stats["resent"] > 0
    assert set(stats) == {"restarts", "resent", "requests", "steps", "update_bytes"}


def test_only_what_died_is_repeated_and_the_counters_of_the_dead_stay(played: Any) -> None:
    doomed = False
    pool, ray = played(lambda handle, method: "dies after" if doomed and handle.number == 0 else "answers", actors=2)
    assert answers(pool, requests(8)) == alone(requests(8))
    doomed = True
    asked = requests(8, first=8)
    for one in asked:
        pool.add_request(one)
    assert answers(pool, []) == alone(asked)
    stats = pool.stats()
    assert (stats["restarts"], stats["resent"]) == (1, 4)  # those that its second call had brought
    assert stats["requests"] == 8 + 8  # what the dead one did last, it could not tell
    did = [{r.request_id for r in handle.actor.engine.requests} for handle in ray.handles[:2]]
    assert did[0] & did[1] == {r.request_id for r in ray.handles[0].actor.engine.requests[4:]}


def test_what_an_actor_was_not_told_yet_is_no_repeat_and_one_out_of_reach_is_ended(played: Any) -> None:
    fates: dict[int, Fate] = {0: "answers"}
    pool, ray = played(lambda handle, method: fates.get(handle.number, "answers"), actors=1)
    fates[0] = "waits"
    asked = requests(5)
    for one in asked:
        pool.add_request(one)
        pool.step()  # the first one travels in a call, the second call is under way too
    fates[0] = "is out of reach"
    assert answers(pool, []) == alone(asked)
    assert pool.stats()["resent"] == 1
    assert not ray.handles[0].alive


def test_requests_are_spread_evenly_and_queued_in_one_call(played: Any) -> None:
    pool, ray = played()
    for one in requests(30):
        pool.add_request(one)
    pool.step()
    assert [len(handle.actor.engine.requests) for handle in ray.handles] == [10, 10, 10]
    assert [handle.asked for handle in ray.handles] == [["start", "advance", "advance", "advance"]] * 3


def test_a_conversation_stays_where_its_prefix_is_unless_that_actor_is_too_busy(played: Any) -> None:
    pool, ray = played(actors=2)
    system = list(range(64))  # all share it
    turns = {i: [*system, *range(100 + i, 1700 + i)] for i in range(6)}  # 1,600 tokens weigh as much as 6 requests
    homes: dict[int, set[int]] = {i: set() for i in turns}
    for turn in range(4):
        asked = [request(f"{i}.{turn}", prompt=turns[i]) for i in (turns if turn % 2 else reversed(turns))]
        answers(pool, asked)
        for handle in ray.handles:
            for i in turns:
                if any(r.request_id == f"{i}.{turn}" for r in handle.actor.engine.requests):
                    homes[i].add(handle.number)
        turns = {i: [*turns[i], *range(300 + i + turn, 340 + i + turn)] for i in turns}
    assert all(len(home) == 1 for home in homes.values())
    assert set.union(*homes.values()) == {0, 1}
    for i in range(20):  # all want the same actor
        pool.add_request(request(f"busy {i}", prompt=turns[0]))
    answers(pool, [])
    shares = [sum("busy" in r.request_id for r in handle.actor.engine.requests) for handle in ray.handles]
    assert shares == [10, 10]
    answers(pool, [])
    pool.update_weights(weights(1.0), 1)  # forgets prefixes
    first = request("after", prompt=turns[5])
    home = next(iter(homes[5]))
    answers(pool, [request("other", prompt=[1]), first] if home == 0 else [first])
    assert first in ray.handles[1 - home].actor.engine.requests


def test_an_actor_that_starts_again_gets_requests_only_when_it_is_ready(played: Any) -> None:
    ready = False
    pool, ray = played(lambda handle, method: "waits" if handle.number == 2 and not ready else "answers", actors=2)
    ray.handles[0].end()
    assert answers(pool, requests(9)) == alone(requests(9))
    assert ray.handles[2].asked == ["start"]
    pool.update_weights(weights(3.0), 7)  # does not wait for it either
    ready = True
    assert answers(pool, requests(9, first=40)) == alone(requests(9, first=40), 3.0, 7)
    assert ray.handles[2].asked[:3] == ["start", "load", "advance"]


def test_refused_weights_change_nothing_anywhere(played: Any) -> None:
    pool, ray = played()
    with pytest.raises(EngineError, match="no weight 'unknown'"):
        pool.update_weights([("unknown", torch.ones(1))], 4)
    assert answers(pool, requests(9)) == alone(requests(9))
    pool.update_weights(weights(1.0), 3)
    for _ in range(2):
        with pytest.raises(EngineError, match="no weight 'unknown'"):
            pool.update_weights([*weights(2.0), ("unknown", torch.ones(1))], 4)
    assert pool.policy_version == 3
    assert answers(pool, requests(9)) == alone(requests(9), 1.0, 3)
    ray.handles[1].end()
    assert answers(pool, requests(9)) == alone(requests(9), 1.0, 3)
    pool.add_request(request("a", prompt=[1]))
    with pytest.raises(EngineError, match="1 requests are unfinished"):
        pool.update_weights(weights(2.0), 4)
    assert answers(pool, []) == alone([request("a", prompt=[1])], 1.0, 3)


def test_actors_on_the_trainers_gpu_lend_it_their_memory_and_get_the_weights_again(
    played: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = FakeGPUs(monkeypatch, count=8, current=5)
    pool, ray = played()
    assert gpus.chosen == [5, 5, 5]
    pool.sleep()
    ray.handles[1].end()
    assert pool.policy_version == NO_WEIGHTS
    with pytest.raises(EngineError, match="no weights"):
        pool.add_request(request("a", prompt=[1]))
    pool.wake()  # one has died in its sleep
    pool.update_weights(weights(2.0), 0)
    assert answers(pool, requests(9)) == alone(requests(9), 2.0)
    assert [kind for kind, *_ in ray.handles[0].actor.engine.events][:3] == ["sleep", "wake", "update"]
    pool.add_request(request("a", prompt=[1]))
    with pytest.raises(EngineError, match="1 requests are unfinished"):
        pool.sleep()
    assert gpus.current == 5


def test_actors_with_gpus_of_their_own_never_sleep(played: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = FakeGPUs(monkeypatch, count=8, current=5)
    monkeypatch.setattr(FakeRay, "gpus", 8)
    pool, ray = played(num_gpus=1)
    assert gpus.chosen == []
    pool.sleep()
    pool.wake()
    assert pool.policy_version == 0
    assert {method for handle in ray.handles for method in handle.asked} == {"start"}


def test_bad_requests_are_refused_at_once_or_by_the_engine_in_its_own_words(played: Any) -> None:
    pool, _ = played()
    with pytest.raises(EngineError, match="max_model_len"):
        pool.add_request(request("long", prompt=[1] * 4096))
    pool.add_request(request("a", prompt=[1]))
    with pytest.raises(EngineError, match="already running"):
        pool.add_request(request("a", prompt=[1]))
    pool.add_request(request("b", prompt=[REFUSED]))
    with pytest.raises(EngineError, match=r"^Request b is refused\.$"):
        answers(pool, [])


def test_a_request_that_kills_every_actor_ends_the_run(played: Any) -> None:
    pool, ray = played()
    with pytest.raises(EngineError, match="keep dying: 3 in a row"):
        answers(pool, [*requests(40), request("x", prompt=[DEADLY], max_tokens=9)])
    assert len(ray.handles) == 3 + 2
    pool.close()
    assert not any(handle.alive for handle in ray.handles)


def test_an_actor_that_dies_whenever_it_starts_ends_the_run(played: Any) -> None:
    pool, ray = played(lambda handle, method: "dies before" if handle.number else "answers", actors=1)
    ray.handles[0].end()
    with pytest.raises(EngineError, match="the last one while it started"):
        answers(pool, requests(3))
    assert len(ray.handles) == 1 + 2


def test_completions_in_between_make_a_place_sound_again(played: Any) -> None:
    pool, ray = played(actors=1)
    for restarts in range(1, 6):
        ray.handles[-1].end()
        assert answers(pool, requests(3)) == alone(requests(3))
        assert pool.stats()["restarts"] == restarts


def test_a_first_start_that_fails_is_the_engines_own_error_and_leaves_no_ray(played: Any) -> None:
    made: list[FakeRay] = []
    with pytest.raises(EngineError, match=r"^The model is refused\.$"):
        played(lambda handle, method: made.append(ray_start.import_ray()) or "answers", model="refused")
    assert not made[0].initialised
    assert not any(handle.alive for handle in made[0].handles)


def test_a_pool_is_ready_when_all_its_actors_are(played: Any) -> None:
    luck = random.Random(0)
    pool, ray = played(lambda handle, method: luck.choice(["answers", "waits", "waits", "waits"]))
    for one in requests(3):
        pool.add_request(one)
    pool.step()
    assert [handle.asked[1:2] for handle in ray.handles] == [["advance"]] * 3


def test_patience_with_a_start_ends(played: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "_START_SECONDS", 0.0)
    with pytest.raises(EngineError, match=r"not started within 0 s.*'CPU': 8"):
        played(lambda handle, method: "waits")
    monkeypatch.setattr(ray_engine, "_START_SECONDS", 60.0)
    pool, ray = played(lambda handle, method: "waits" if handle.number > 2 else "answers")
    monkeypatch.setattr(ray_engine, "_START_SECONDS", 0.0)
    ray.handles[0].end()
    assert answers(pool, requests(9)) == alone(requests(9))  # two are enough
    ray.handles[1].end()
    ray.handles[2].end()
    with pytest.raises(EngineError, match="not started"):
        answers(pool, requests(9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_cpus": 3}, r"`engine\.actors` to be at most 8 CPUs of this machine / `engine\.num_cpus` = 3, but got 3"),
        ({"num_gpus": 0.5}, r"`engine\.actors` to be at most 0 GPUs"),
        ({"address": "auto"}, r"`engine\.address` to be of a Ray cluster that runs.*'auto'"),
        ({"address": "127.0.0.1:1"}, r"`engine\.address` .*refused.*'127\.0\.0\.1:1'"),
    ],
)
def test_arguments_name_their_key(played: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        played(**arguments)


def test_a_cluster_may_grow_and_is_not_shut_down(played: Any, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        pool, ray = played(address=address, num_cpus=4)
    assert "Waiting for 3 actors × 4 CPUs: the cluster has 8." in caplog.text
    assert ray.address == address
    pool.close()
    assert not ray.initialised  # this process has left it
    pool.close()
    pool, ray = played()
    assert ray.address == "local"
    pool.close()
    ray.init(address="local")  # by another
    pool.close()
    assert ray.initialised
    theirs = RayEngine("any", SlowEngine)
    theirs.close()
    assert ray.initialised
    ray.shutdown()
    ray.broken.add("local")
    with pytest.raises(OSError, match="does not start: local"):
        RayEngine("any", SlowEngine)


def test_missing_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"opdlight\[ray\]"):
        RayEngine("any", SlowEngine)


def test_real_ray_survives_a_kill_and_the_new_process_has_the_new_weights(capfd: pytest.CaptureFixture[str]) -> None:
    random.seed(5)
    expected = random.Random(5).random()
    handler = signal.getsignal(signal.SIGTERM)
    pool = RayEngine("any", partial(SlowEngine, seconds=0.005), actors=2, num_cpus=0.5)
    assert (random.random(), signal.getsignal(signal.SIGTERM)) == (expected, handler)
    killed: list[int] = []

    def kill(found: list[Completion]) -> None:
        if len(found) > 15 and not killed:
            killed.append(int(found[0].logprobs[0]))
            os.kill(killed[0], signal.SIGKILL)

    try:
        assert answers(pool, requests(60), kill) == alone(requests(60))
        assert killed
        assert killed[0] != os.getpid()
        assert pool.stats()["restarts"] == 1
        assert pool.stats()["resent"] > 0
        pool.update_weights(weights(2.0), 5)
        with pytest.raises(EngineError, match=r"^The engine's model has no weight 'unknown'\.$"):
            pool.update_weights([("unknown", torch.ones(1))], 6)
        places: set[float] = set()
        round_number = 0
        while len(places) < 2:  # until the new process has joined
            asked = requests(8, first=round_number)
            found = answers(pool, asked, lambda found: places.update(c.logprobs[0] for c in found))
            assert found == alone(asked, 2.0, 5)
            round_number += 1
        assert killed[0] not in places
        name, ray = pool._members[0].name, pool._ray  # as another process of the trainer finds and loses an actor
        assert ray.get(ray.get_actor(name, namespace=NAMESPACE).sleep.remote()).max_model_len == pool.max_model_len
        ray.kill(pool._members[0].actor)
        with pytest.raises(ValueError, match=name):
            ray.get_actor(name, namespace=NAMESPACE)
    finally:
        pool.close()
    assert "Traceback" not in "".join(capfd.readouterr())
