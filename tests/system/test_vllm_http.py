"""Requests to a server: what is retried, what is an error at once, and that the API key is never shown."""

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from opdlight.config import TrainConfig, compose
from opdlight.config.entry import USER_ERRORS
from opdlight.errors import ConfigError, ServerError
from opdlight.system import vllm_http as module
from opdlight.system.vllm_http import VLLMServer, find_model
from tests import fake_server
from tests.fake_server import FakeServer
from tests.tiny_models import tiny_llama, tiny_tokenizer


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    tokenizer = tiny_tokenizer()
    with FakeServer(tiny_llama(vocabulary_size=len(tokenizer)), tokenizer) as fake:
        yield fake


def client(url: str, **changed: Any) -> VLLMServer:
    how: Any = {"concurrency": 4, "timeout": 60.0, "retries": 3, "api_key_env": "NO_SUCH_KEY", **changed}
    return VLLMServer(url, "teacher", **how)


def generate(server: VLLMServer) -> dict[str, Any]:
    return server.generate([5, 6, 7], "tiny", max_tokens=2)


@pytest.mark.parametrize(
    "fault",
    [
        fake_server.status(500), fake_server.status(503), fake_server.status(429),
        fake_server.cut, fake_server.half_json, fake_server.hang_up,
    ],
    ids=["500", "503", "429", "cut", "half JSON", "hung up"],
)  # fmt: skip
def test_what_may_pass_is_asked_again(fault: Any, fake: FakeServer) -> None:
    server = client(fake.url)
    expected = generate(server)
    fake.faults.extend([fault, fault])
    assert generate(server) == expected
    stats = server.stats()
    assert stats["retries"] == 2
    assert 0.015 <= stats["waited"] <= 0.03


def test_a_slow_answer_is_asked_for_again(fake: FakeServer) -> None:
    server = client(fake.url, timeout=0.5, retries=20)
    fake.faults.append(fake_server.slow(60))
    assert generate(server)["model"] == "tiny"
    assert server.stats()["retries"] >= 1


def test_a_server_that_comes_back_in_time_is_recovered_from(fake: FakeServer) -> None:
    server = client(fake.url, retries=12)
    fake.stop()
    timer = threading.Timer(0.3, fake.start)
    timer.start()
    assert generate(server)["model"] == "tiny"
    timer.join()
    assert server.stats()["retries"] > 0


def test_a_server_that_stays_away_is_one_error(fake: FakeServer) -> None:
    fake.stop()
    with pytest.raises(ServerError) as error:
        generate(client(fake.url))
    text = str(error.value)
    assert "4 attempts" in text
    assert "Connect" in text
    assert "`teacher.url`" in text
    assert isinstance(error.value, USER_ERRORS)  # no traceback
    fake.start()


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
def test_a_refusal_is_an_error_at_once_with_the_servers_words(code: int, fake: FakeServer) -> None:
    server = client(fake.url)
    fake.faults.append(fake_server.status(code, "no such thing"))
    with pytest.raises(ServerError, match=rf"/inference/v1/generate answered {code}: no such thing") as error:
        generate(server)
    assert error.value.status == code
    assert server.stats()["retries"] == 0
    assert len(fake.asked) == 1


def test_the_key_is_sent_and_never_shown(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake.key = "sesame-4711"
    monkeypatch.setenv("SOME_KEY", "sesame-4711")
    caplog.set_level(logging.DEBUG)
    server = client(fake.url, api_key_env="SOME_KEY")
    assert generate(server)["model"] == "tiny"
    fake.key = "another"
    with pytest.raises(ServerError) as error:
        generate(server)
    with pytest.raises(
        ServerError, match=r"401: Unauthorized: None\. Put its key into the environment variable NO_SUCH"
    ):
        generate(client(fake.url))
    assert "Bearer …" in str(error.value)  # the server repeats the key, the error does not
    assert not any(record.name.startswith("httpx2") for record in caplog.records)
    shown = [str(error.value), repr(server), repr(error.value), caplog.text, str(server.stats())]
    assert not any("4711" in text for text in shown)


@pytest.mark.parametrize(
    ("url", "message"),
    [("localhost:8000", "`teacher.url`"), ("http://me:4711@host", r"`teacher.url` .* got 'http://…@host'")],
)
def test_wrong_addresses_are_named(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        client(url)
    assert "4711" not in str(error.value)


@pytest.mark.parametrize("group", ["teacher", "engine"])
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("concurrency=0", "int ≥ 1"),
        ("timeout=0", "float > 0"),
        ("timeout=inf", "float > 0"),
        ("retries=-1", "int ≥ 0"),
    ],
)
def test_wrong_numbers_are_named(group: str, wrong: str, expected: str) -> None:
    key, _, value = wrong.partition("=")
    served = ["task=sums", f"{group}=vllm_server", f"{group}.url=http://host:8000"]
    with pytest.raises(ConfigError, match=f"Expected `{group}.{key}` to be .*{expected}, but got {value}"):
        compose("train", TrainConfig, [*served, f"{group}.{wrong}"])


def test_so_many_are_under_way_at_once(fake: FakeServer) -> None:
    server, full = client(fake.url, concurrency=3), threading.Event()

    def hold(handler: Any) -> bool:
        """Nobody is answered before three have asked."""
        if fake.most_at_once >= 3:
            full.set()
        assert full.wait(300)
        return False

    fake.faults.extend([hold] * 9)
    answers = server.map(lambda ids: server.generate(ids, "tiny", max_tokens=1), [[5, i] for i in range(9)])
    assert len(answers) == 9
    assert fake.most_at_once == 3


def test_the_first_error_ends_the_others_that_wait(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 3600.0)
    fake.faults.append(fake_server.status(500))
    server = client(fake.url)

    def ask(code: int) -> Any:
        if code == 400:
            while not server.stats()["retries"]:  # the other one waits by now
                time.sleep(0.001)
            fake.faults.append(fake_server.status(400))
        return generate(server)

    with pytest.raises(ServerError, match="answered 400"):
        server.map(ask, [200, 400])  # in less than the hour of the pause, or the test hangs
    assert len(fake.asked) == 2  # the one that waited did not try again
    assert generate(server)["model"] == "tiny"  # and it can be asked again


def test_a_reply_without_a_choice_is_refused(fake: FakeServer) -> None:
    fake.spoil = lambda reply: reply.update(choices=[])
    with pytest.raises(ServerError, match="one choice"):
        generate(client(fake.url))


def test_a_model_is_found_by_its_name_or_the_end_of_its_path(fake: FakeServer) -> None:
    server = client(fake.url)
    fake.name = fake.root = "some/tiny"
    for model in ("some/tiny", "/models/some/tiny", "/models/some/tiny/"):
        assert find_model([server], model) == (server, "some/tiny", 256)
    for model in ("tiny", "some/tiny-2", "awesome/tiny"):
        with pytest.raises(ConfigError, match=r"`teacher.url` .*some/tiny"):
            find_model([server], model)
    fake.root = "/data/large"  # started from a path, under another name
    assert find_model([server], "/data/large") == (server, "some/tiny", 256)
