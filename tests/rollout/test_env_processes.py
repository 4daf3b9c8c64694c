"""Worker processes play what threads play; what one of them costs when it fails."""

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opdlight.data.tasks import Task
from opdlight.errors import ConfigError, EnvError
from opdlight.rollout import Sampling, ScriptedEngine, count_workers, make_collector
from opdlight.rollout.env_processes import ProcessPool
from opdlight.types import RolloutRequest, Status, Trajectory
from tests.rollout.played import CannotArrive, Make
from tests.rollout.walking import GO, Envs, collector, requests
from tests.tiny_models import character_tokenizer

HANGS = 300.0  # seconds after which a test that hangs fails


def play(make: Any, *seeds: int, **kw: Any) -> list[Trajectory]:
    collecting = collector(ScriptedEngine(lambda prompt: GO), make, **kw)
    try:
        return collecting.collect(requests(*seeds), Sampling())
    finally:
        collecting.close()


def statuses(trajectories: list[Trajectory]) -> list[Status]:
    return [t.status for t in trajectories]


def plain(trajectories: list[Trajectory]) -> list[Trajectory]:
    return [replace(t, metrics={}, turns=[replace(turn, metrics={}) for turn in t.turns]) for t in trajectories]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_play_what_threads_play() -> None:
    seeds = [*range(1, 9), 4, 4, 13, 25]
    threads, processes = play(Make(), *seeds), play(Make(), *seeds, env_workers=2)
    assert plain(threads) == plain(processes)
    assert len({tuple(t.turns[0].prompt_ids) for t in processes}) == len(set(seeds))  # they depend on the seed
    steps = [(t.metrics["process"] / len(t.turns), t.metrics["torch"]) for t in processes]
    assert len({process for process, _ in steps} - {os.getpid()}) == 2
    assert {torch for _, torch in steps} == {0.0}


def test_tasks_of_a_config_are_played_in_processes() -> None:
    taxi = {"id": "opdlight/ToyText-v0", "game": "Taxi-v4", "max_turns": 2}
    games = {"id": "opdlight/ALFWorld-v0", "receptacles": [3, 6], "objects": [3, 6], "max_turns": 4}
    limits: dict[str, Any] = {"turn_tokens": 8, "trajectory_tokens": 4000}
    tasks = {"taxi": Task(env=taxi, **limits), "games": Task(env=games, **limits)}
    wanted = [RolloutRequest(task=task, seed=s, group=s) for task in tasks for s in range(3)]
    found = []
    for workers in (0, 2):
        engine = ScriptedEngine(lambda prompt: GO)
        collecting = make_collector(engine, character_tokenizer(), tasks, 2, None, workers)
        collecting.prepare(wanted[4:])
        found.append(collecting.collect(wanted, Sampling()))
        collecting.close()
    assert found[0] == found[1]
    assert [len(t.turns) for t in found[0]] == [2, 2, 2, 4, 4, 4]


@pytest.mark.parametrize("error", ["raises", "raises-own"])
@pytest.mark.parametrize("where", ["reset", "step"])
def test_an_environment_that_raises_ends_only_its_trajectory(
    where: str, error: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.ERROR):
        found = play(Make(f"{where} {error}", tmp_path), 2, 13, 4, 6, env_workers=1)
    assert statuses(found) == [Status.SUCCESS, Status.ENV_ERROR, Status.SUCCESS, Status.SUCCESS]
    assert len(found[1].turns) == (0 if where == "reset" else 2)
    assert caplog.messages == ["Environment of task 'walk' failed in the episode of seed 13."]
    assert "broken door" in caplog.text and "in _fail" in caplog.text  # with its traceback
    assert (tmp_path / "notes").read_text() == "close\n" * 4  # the broken one, too


@pytest.mark.parametrize("fault", ["step hangs", "step killed", "reset killed"])
def test_an_environment_that_hangs_or_dies_costs_the_episodes_of_its_process(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    limit = 3.0 if "hangs" in fault else 60.0
    collecting = collector(ScriptedEngine(lambda prompt: GO), Make(fault), env_workers=2, env_seconds=limit)
    with caplog.at_level(logging.ERROR):
        found = collecting.collect(requests(9, 13, 8, 7), Sampling())  # 13 and 7 are played by the second process
    other = Status.ENV_ERROR if "step" in fault else Status.FAILURE  # its reset comes to the next process
    assert statuses(found) == [Status.FAILURE, Status.ENV_ERROR, Status.SUCCESS, other]
    why = "took longer than 3 s in the episode of seed 13" if "hangs" in fault else "exit code -9"
    assert why in caplog.text
    assert ("The process that played this episode has ended" in caplog.text) == ("step" in fault)
    assert statuses(collecting.collect(requests(2, 4, 6, 8), Sampling())) == [Status.SUCCESS] * 4
    collecting.close()


def test_a_signal_to_all_processes_is_the_parents() -> None:
    assert statuses(play(Make("step signals"), 13, env_workers=1)) == [Status.FAILURE]


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (Make("reset config"), ConfigError, "no such game"),
        (Make("constructor"), KeyError, "no such file"),
        (CannotArrive(), TypeError, "positional argument"),
    ],
)
def test_errors_that_would_hit_every_episode_stop_the_run(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        play(make, 13, 2, env_workers=1)


def test_the_next_collection_after_an_aborted_one() -> None:
    collecting = collector(ScriptedEngine(lambda prompt: GO), Make("reset config"), env_workers=1)
    with pytest.raises(ConfigError):
        collecting.collect(requests(3, 13, 5), Sampling())
    assert [len(t.turns) for t in collecting.collect(requests(2, 4), Sampling())] == [2, 4]
    collecting.close()


def test_a_process_is_replaced_after_so_many_episodes_once_none_runs() -> None:
    pool = ProcessPool(Make(), 1, recycled=3)
    seen = []
    for _ in range(3):
        for number in range(2):
            pool.reset(number, "walk", 1)
        while pool.in_flight:
            pool.answers(wait=True)
        for number in range(2):
            pool.step(number, "go")
            seen += [answer.metrics["process"] for _, answer in pool.answers(wait=True)]
            pool.finish(number)
    pool.close()
    first, second = seen[0], seen[4]
    assert seen == [first] * 4 + [second] * 2 and first != second


def test_an_episode_goes_where_its_seed_was_prepared(tmp_path: Path) -> None:
    pool = ProcessPool(Make(folder=tmp_path), 2)
    for seed in (11, 21):
        pool.prepare("walk", seed)
    for number, seed in enumerate([21, 21, 21, 11, 31]):
        pool.reset(number, "walk", seed)
    processes: dict[int, float] = {}
    while pool.in_flight:
        for number, answer in pool.answers(wait=True):
            if answer.terminated:
                processes[number] = answer.metrics["process"]
            else:
                pool.step(number, "go")
    pool.close()
    assert processes[0] == processes[1] == processes[2] != processes[3] == processes[4]
    assert sorted((tmp_path / "notes").read_text().split("\n"))[-2:] == ["prepare 11", "prepare 21"]


def test_close_does_not_wait_for_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opdlight.rollout.env_processes.CLOSING", 0.5)
    pool = ProcessPool(Make("reset hangs"), 2)
    pool.reset(0, "walk", 13)
    pool.reset(1, "walk", 1)
    pool.answers(wait=True)
    processes = [worker._process.pid for worker in pool._workers if worker._process]
    pool.close()
    assert len(processes) == 2 and not any(map(is_alive, processes))


def test_what_an_environment_has_started_is_killed_with_it(tmp_path: Path) -> None:
    pool = ProcessPool(Make("reset waits", str(tmp_path)), 1, {"walk": 1.0})
    pool.reset(0, "walk", 13)
    (_, answer), = pool.answers(wait=True)  # fmt: skip
    pool.close()
    assert "took longer than 1 s" in str(answer.error)
    child, *_ = (tmp_path / "notes").read_text().split()
    end = time.monotonic() + HANGS
    while is_alive(int(child)):  # its new parent reaps it
        assert time.monotonic() < end
        time.sleep(0.01)


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time, types\n"
        "room = sys.modules['opdlight.rollout'] = types.ModuleType('opdlight.rollout')  # without torch: quick\n"
        "room.__path__ = ['opdlight/rollout']\n"
        "from opdlight.rollout.env_processes import ProcessPool; from tests.rollout.played import Make\n"
        f"pool = ProcessPool(Make('reset hangs', {str(tmp_path)!r}), 2)\n"
        "pool.reset(0, 'walk', 13); pool.reset(1, 'walk', 1)\n"
        "pool.answers(wait=True); print(*[w._process.pid for w in pool._workers], flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        processes = [int(word) for word in parent.stdout.readline().split()]
        assert len(processes) == 2 and all(map(is_alive, processes))
        until = time.monotonic() + HANGS
        while not (tmp_path / "notes").exists():  # one hangs: it does not see that the pipe is closed
            assert time.monotonic() < until
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    while any(map(is_alive, processes)):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_process_that_cannot_start_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opdlight.rollout.env_processes._PROGRAM", "raise SystemExit(5)")
    with pytest.raises(EnvError, match="exit code 5 at its start"):
        play(Make(), 2, env_workers=1)


def test_what_cannot_be_pickled_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="env_workers"):
        collector(ScriptedEngine(lambda prompt: GO), Envs(lambda: Make()("walk")), env_workers=1)


def test_auto_shares_the_cores_of_a_machine_among_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_workers(0) == 0 and count_workers(5) == 5
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(16), raising=False)
    assert count_workers("auto") == 15
    monkeypatch.setattr("opdlight.rollout.opening.world_size", lambda: 8)
    assert count_workers("auto") == 1
    assert count_workers("auto", nodes=2) == 3
    assert count_workers("auto", nodes=8) == 15
