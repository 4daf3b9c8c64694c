"""A student behind a fake server: no completion comes from other weights, and none comes twice."""

import threading
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch

from opdlight.errors import EngineError
from opdlight.rollout import Sampling, VLLMServerEngine
from tests import fake_server
from tests.fake_server import FakeServer
from tests.rollout.served import PROMPTS, STOP, add, finish, gap, generate, student
from tests.tiny_models import tiny_adapter

PUSH = ["/update_weight_version", "/collective_rpc", "/reset_prefix_cache", "/weight_info", "/update_weight_version"]


def requests(fake: FakeServer) -> list[Any]:
    return [body for path, body in fake.asked if path == "/inference/v1/generate"]


def test_completions_are_those_of_the_weights_that_it_was_given(
    fake: FakeServer, start: Callable[..., VLLMServerEngine], tmp_path: Path
) -> None:
    engine = start()
    first = generate(engine)
    assert gap(student(0), first) < 1e-4  # the student's own, not the server's
    assert gap(student(9), first) > 0.1
    assert {c.policy_version for c in first} == {0}
    for version, seed in ((1, 3), (5, 4)):
        engine.update_weights(student(seed).state_dict().items(), version)
        assert engine.policy_version == version
        found = generate(engine)
        assert gap(student(seed), found) < 1e-4
        assert {c.policy_version for c in found} == {version}
        assert len(list((tmp_path / "w").iterdir())) == 1  # the newest weights only
    again = generate(engine)
    assert again == found
    assert [c.token_ids for c in found] != [c.token_ids for c in first]
    assert fake.most_at_once <= 4
    stats = engine.stats()
    assert (stats["requests"], stats["restarts"], stats["resent"]) == (4 * len(PROMPTS), 0, 0)
    assert stats["prompt_tokens"] == 4 * 3 * len(PROMPTS)
    engine.close()
    assert not (tmp_path / "w").exists()


def test_stop_tokens_and_sampling_are_those_of_the_request(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start()
    fake.asked.clear()
    found = generate(engine, max_tokens=60, sampling=Sampling(temperature=0.7, top_p=0.9))
    for body in requests(fake):
        how = body["sampling_params"]
        assert (how["temperature"], how["top_p"], how["max_tokens"], how["logprobs"]) == (0.7, 0.9, 60, 0)
        assert (how["stop_token_ids"], how["seed"]) == ([STOP], 100 + PROMPTS.index(body["token_ids"]))
    assert {c.finish_reason for c in found} == {"stop", "length"}
    assert all(c.token_ids.count(STOP) == (c.finish_reason == "stop") for c in found)
    assert all(len(c.token_ids) == len(c.logprobs) for c in found)
    assert gap(student(0), found) < 1e-4  # raw, whatever the temperature


def test_a_stop_of_the_request_ends_what_the_folder_would_let_go_on(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start()
    whole = generate(engine, max_tokens=30)
    also = max((c.token_ids for c in whole), key=len)[3]
    fake.asked.clear()
    for before, cut in zip(whole, generate(engine, max_tokens=30, sampling=Sampling(stop=[also])), strict=True):
        end = before.token_ids.index(also) + 1 if also in before.token_ids else len(before.token_ids)
        assert cut.token_ids == before.token_ids[:end]
        assert cut.finish_reason == ("stop" if also in before.token_ids else before.finish_reason)
    assert all(set(b["sampling_params"]["stop_token_ids"]) == {STOP, also} for b in requests(fake))


def test_weights_are_pushed_while_nothing_is_labelled_with_their_version(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start()
    fake.asked.clear()
    engine.update_weights(student(3).state_dict().items(), 7)
    assert [path for path, _ in fake.asked] == PUSH
    first, last = fake.asked[0][1]["new_version"], fake.asked[-1][1]["new_version"]
    assert (first, last) == (f"{last}-loading", fake.version)
    assert last.endswith("-7")
    assert start()._weights.label.rpartition("-")[0] != last.rpartition("-")[0]  # another run's labels are others


def forget(fake: FakeServer, handler: BaseHTTPRequestHandler) -> bool:
    """The server is restarted before it answers."""
    fake.restart()
    return False


def restart_and_hang_up(fake: FakeServer, handler: BaseHTTPRequestHandler) -> bool:
    fake.restart()
    return fake_server.hang_up(handler)


@pytest.mark.parametrize("fault", [forget, restart_and_hang_up])
@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_restart_in_mid_batch_changes_no_completion(
    fault: Callable[..., bool], place: int, fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start()
    engine.update_weights(student(3).state_dict().items(), 1)
    expected = generate(engine)
    loads, before = fake.loads, engine.stats()
    fake.asked.clear()
    fake.faults.extend([fake_server.slow(0)] * place + [partial(fault, fake)])
    assert generate(engine) == expected
    stats = engine.stats()
    assert stats["restarts"] == 1
    assert fake.loads == loads + 1
    assert 1 <= stats["resent"] <= len(PROMPTS)
    assert stats["requests"] - before["requests"] == len(PROMPTS)
    asked = [(tuple(body["token_ids"]), body["sampling_params"]["seed"]) for body in requests(fake)]
    assert set(asked) == {(tuple(p), 100 + i) for i, p in enumerate(PROMPTS)}  # sent again with the same seeds
    assert len(asked) == len(PROMPTS) + stats["resent"] + stats["retries"]
    paths = [path for path, _ in fake.asked]
    loaded = paths.index("/update_weight_version")
    assert paths[loaded : loaded + len(PUSH)] == PUSH  # nothing is asked for while it loads


def test_nothing_more_is_sent_to_a_server_that_has_lost_its_weights(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start(concurrency=1)
    fake.asked.clear()
    held = threading.Event()
    fake.faults.extend([partial(forget, fake), lambda handler: not held.wait()])
    for number in range(len(PROMPTS)):
        add(engine, number)
    while not engine._waiting:
        assert engine.step() == []
    held.set()
    finish(engine)
    paths = [path for path, _ in fake.asked]
    assert paths.index("/update_weight_version") == engine.stats()["resent"] == 2
    assert len(requests(fake)) == len(PROMPTS) + 2


def test_a_server_that_is_away_for_a_while_gets_the_weights_again(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start(retries=14)
    engine.update_weights(student(3).state_dict().items(), 1)
    expected = generate(engine)
    fake.stop()
    fake.restart()
    timer = threading.Timer(0.3, fake.start)
    timer.start()
    assert generate(engine) == expected
    timer.join()
    assert engine.stats()["restarts"] == 1
    assert engine.stats()["retries"] > 0


def test_a_restart_while_it_loads_weights_begins_the_load_anew(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start()
    left = [fake.restart, fake.restart]
    fake.after_load = lambda: left.pop()() if left else None
    engine.update_weights(student(3).state_dict().items(), 1)
    assert gap(student(3), generate(engine)) < 1e-4
    assert engine.stats()["retries"] == 2


def test_a_server_that_never_keeps_its_weights_is_an_error(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start(retries=2)
    fake.faults.extend([partial(forget, fake)] * 100)
    add(engine, 0)
    with pytest.raises(EngineError, match="lost its weights 4 times without one completion"):
        finish(engine)


def test_aborted_requests_are_sent_again(fake: FakeServer, start: Callable[..., VLLMServerEngine]) -> None:
    engine = start()
    expected = generate(engine)
    aborts = iter(["abort"])

    def abort(reply: dict[str, Any]) -> None:
        reply["choices"][0]["finish_reason"] = next(aborts, reply["choices"][0]["finish_reason"])

    fake.spoil = abort
    assert generate(engine) == expected
    assert engine.stats()["resent"] == 1


def test_another_run_at_the_same_server_is_noticed(fake: FakeServer, start: Callable[..., VLLMServerEngine]) -> None:
    engine = start()
    add(engine, 0)
    finish(engine)
    start()  # pushes its own weights
    add(engine, 0)
    with pytest.raises(EngineError, match="another run publishes to the same server"):
        finish(engine)


def test_a_step_without_completions_ends_soon(fake: FakeServer, start: Callable[..., VLLMServerEngine]) -> None:
    engine = start()
    held = threading.Event()
    fake.faults.append(lambda handler: not held.wait())
    add(engine, 0)
    assert engine.step() == []  # it would wait for ever
    assert engine.has_unfinished()
    held.set()
    assert len(finish(engine)) == 1


def test_closing_gives_up_what_a_server_does_not_answer(
    fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start(timeout=600.0)
    held = threading.Event()
    fake.faults.extend([lambda handler: not held.wait()] * 4)
    for number in range(len(PROMPTS)):
        add(engine, number)
    while fake.most_at_once < 4:
        engine.step()
    engine.close()
    sent = [future for future in engine._in_flight if not future.cancelled()]
    assert not wait(sent, timeout=60).not_done  # else the process would wait for them at its end
    assert len(requests(fake)) == 1 + 4  # the check at the start
    held.set()


def test_what_does_not_fit_changes_nothing(
    fake: FakeServer, start: Callable[..., VLLMServerEngine], tmp_path: Path
) -> None:
    engine = start()
    expected = generate(engine)
    weights = dict(student(4).state_dict())
    for bad, message in [
        ({n: w for n, w in weights.items() if "layers.1" not in n}, "are missing"),
        (weights | {"model.norm.weight": torch.ones(7)}, "shape"),
        (weights | {"x": torch.ones(1)}, "no weight 'x'"),
    ]:
        with pytest.raises(EngineError, match=message):
            engine.update_weights(bad.items(), 1)
    with pytest.raises(EngineError, match=r"fit `engine\.max_model_len` = 64"):
        add(engine, 0, max_tokens=62)
    add(engine, 0)
    with pytest.raises(EngineError, match="already running"):
        add(engine, 0)
    with pytest.raises(EngineError, match="1 requests are unfinished"):
        engine.update_weights(weights.items(), 1)
    finish(engine)
    assert engine.policy_version == 0
    assert len(list((tmp_path / "w").iterdir())) == 1
    assert generate(engine) == expected


def test_an_adapter_is_merged_into_its_base(
    folder: Path, start: Callable[..., VLLMServerEngine], tmp_path: Path
) -> None:
    adapted = tiny_adapter(folder, tmp_path / "adapter")
    engine = start(model=str(tmp_path / "adapter"))
    found = generate(engine)
    assert gap(adapted.model, found) < 1e-4
    assert gap(student(0), found) > 0.01
