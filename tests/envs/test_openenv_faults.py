"""OpenEnv servers that are away, silent, killed, or say what is not in the protocol; wrong arguments."""

import logging
import socket
import sys
from collections.abc import Callable

import pytest

import opdlight.envs  # noqa: F401
from opdlight.config import TrainConfig, compose, instantiate
from opdlight.envs.answers import attempt, step
from opdlight.envs.openenv.env import OpenEnvEnv
from opdlight.errors import ConfigError, EnvError, MissingDependencyError
from tests.envs.fake_openenv import PATHS, FakeOpenEnv, hang_up, observation, say, silence
from tests.envs.openenv_play import FIVE, make, play, real_server

pytestmark = pytest.mark.usefixtures("short_pauses")


def test_no_server_is_one_error_that_names_the_key() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(
        ConfigError, match=r"`url` to be .*OpenEnv server.*refused.*3 attempts: see `retries`.*127.0.0.1"
    ):
        make(url, retries=2)
    with (
        FakeOpenEnv(paths={}) as other,
        pytest.raises(ConfigError, match=r"OpenEnv server, but got .* without /schema"),
    ):
        make(other.url)
    wrongs = ("http://[::1", "http://host:99999", "http://host:0", "http://host?token=x", "http://h/#x", "http://\x00")
    for wrong in ("localhost:8000", "ws://host", "http://me:secret@host", "http://me:secret@[::1", *wrongs):
        with pytest.raises(ConfigError, match="`url` to be like http://host:8000, without user") as error:
            make(wrong)
        assert "secret" not in str(error.value)
    bare = {**PATHS, "/schema": {"action": {"properties": {"metadata": {}}}}}
    with FakeOpenEnv(paths=bare) as other, pytest.raises(ConfigError, match="a server that lists its tools"):
        make(other.url, retries=0, timeout=0.2)
    task = instantiate(compose("train", TrainConfig, ["task=openenv", "task.tasks.openenv.teacher=lab/x"]).task)
    task.tasks["openenv"].env.update(url=url, retries=0)
    with pytest.raises(ConfigError, match=r"`task\.tasks\.openenv\.env`: Expected `url`"):
        task.check_envs()


def test_an_address_may_be_spelt_in_capitals(fake: FakeOpenEnv) -> None:
    assert play(make(f"{fake.url.replace('http', 'HTTP')}/"), "5")[1][:3] == ("Right!", 1.0, True)


def test_without_the_client_of_websockets(fake: FakeOpenEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
    with pytest.raises(MissingDependencyError, match=r"needs the extra `openenv`"):
        make(fake.url)


def test_an_unknown_argument_is_an_error() -> None:
    with pytest.raises(ConfigError, match="success_by"):
        OpenEnvEnv(success_by="luck")  # type: ignore[arg-type]
    overrides = ["task=openenv", "task.tasks.openenv.teacher=lab/x", "task.tasks.openenv.env.success_by=luck"]
    with pytest.raises(ConfigError, match=r"task\.tasks\.openenv\.env\.success_by"):
        instantiate(compose("train", TrainConfig, overrides).task).check_envs()


def test_a_server_that_comes_back_is_asked_again_and_counted(
    fake: FakeOpenEnv, caplog: pytest.LogCaptureFixture
) -> None:
    env = make(fake.url, retries=3)
    fake.faults["reset"].extend([hang_up, hang_up])
    with caplog.at_level(logging.WARNING):
        assert env.reset(seed=FIVE)[0] == "Guess a number from 1 to 9."
    assert "the connection was lost" in caplog.text and "asked again, 3 times at most" in caplog.text
    retries = [env.step(guess)[4]["metrics"]["server_retries"] for guess in "46"]
    assert retries == [2.0, 0.0]
    fake.faults["reset"].extend([hang_up] * 4)
    with pytest.raises(ConfigError, match=r"the connection was lost.*4 attempts"):
        env.reset(seed=FIVE)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (hang_up, r"\(`url`\) was lost in the middle of an episode: the connection was lost"),
        (silence, "did not answer a step within `timeout` = 0.2 s"),
        (say("<html>"), "in OpenEnv's protocol, but got '<html>'"),
        (say('{"type": "observation"}'), "in OpenEnv's protocol"),
        (say('{"data": {}}'), "in OpenEnv's protocol"),
        (say('{"type": "observation", "data": {}}'), "with an observation"),
        (say('{"type": "error", "data": {"code": "SESSION_ERROR", "message": "gone"}}'), r"\(SESSION_ERROR\): gone"),
        (say(observation("x", float("nan"))), "finite number"),
    ],
)
def test_a_fault_in_an_episode_ends_it(fake: FakeOpenEnv, fault: Callable[..., None], message: str) -> None:
    env = make(fake.url, timeout=0.2)
    env.reset(seed=FIVE)
    fake.faults["step"].append(fault)
    answer = attempt(env, lambda env: step(env, "4"))
    with pytest.raises(EnvError, match=message):
        raise answer.error or AssertionError("no error")
    if fault is not silence:
        assert fake.waits_for(0)
    assert play(env, "5")[1][:3] == ("Right!", 1.0, True)  # another episode


def test_a_reset_without_an_answer_is_not_repeated(fake: FakeOpenEnv) -> None:
    env = make(fake.url, timeout=0.2)
    fake.faults["reset"].append(silence)
    with pytest.raises(EnvError, match="did not answer a reset within `timeout`"):
        env.reset(seed=1)


def test_a_server_that_is_killed_in_an_episode() -> None:
    with real_server() as url:
        env = make(f"{url}/guess", retries=1)
        assert play(make(f"{url}/guess"), "5")[1][0] == "Right!"
        env.reset(seed=FIVE)
        with pytest.raises(EnvError, match="was lost in the middle of an episode"):
            env.step("die")
        with pytest.raises(ConfigError, match=r"`url` to be .*\(no session .*2 attempts"):
            env.reset(seed=FIVE)
