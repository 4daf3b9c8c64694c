"""The collector with a scripted engine and small environments: batching, limits, statuses, determinism."""

import queue
import random
import threading
import time
from typing import Any

import pytest

from opdlight.batch.rows import count_splits
from opdlight.envs.answers import Answer
from opdlight.rollout.collector import PATIENCE
from opdlight.rollout.engines.base import Completion, Request, Sampling
from opdlight.rollout.engines.scripted import ScriptedEngine
from opdlight.rollout.env_pool import Call, EnvPool, Episode
from opdlight.rollout.episode import sampling_seed_of
from opdlight.types import RolloutRequest, Status, Trajectory
from tests.rollout.walking import END, GO, WAIT, Envs, Walk, collector, requests, roll


def test_turns_rewards_metrics_and_order() -> None:
    first, second = roll(requests(4, 3))
    assert (first.status, first.reward, len(first.turns)) == (Status.SUCCESS, 1.0, 4)
    assert (second.status, second.reward, len(second.turns)) == (Status.FAILURE, 0.0, 3)
    assert [t.reward for t in first.turns] == [0.0, 0.0, 0.0, 1.0]
    assert first.metrics == {"steps": 4.0, "letters": 8.0}  # the action is "go": without its stop token
    assert [t.metrics for t in first.turns] == [{"steps": 1.0, "letters": 2.0}] * 4
    assert (first.task, first.seed, first.group, second.group) == ("walk", 4, 0, 1)
    assert all(t.completion_ids == GO and t.finish_reason == "stop" for t in first.turns)
    for before, after in zip(first.turns, first.turns[1:], strict=False):
        grown = before.prompt_ids + before.completion_ids
        assert after.prompt_ids[: len(grown)] == grown
    assert count_splits(first) == 0


def test_logprobs_and_policy_version_come_from_the_engine() -> None:
    engine = ScriptedEngine(lambda prompt: (GO, [-0.5, -0.25, -2.0]))
    engine.update_weights([], policy_version=7)
    (trajectory,) = roll(requests(2), engine)
    assert all(t.sampled_logprobs == [-0.5, -0.25, -2.0] and t.policy_version == 7 for t in trajectory.turns)


class Gated(ScriptedEngine):
    """The request of the slow trajectory finishes only after the other one has had all its turns."""

    def __init__(self, slow: str, until: tuple[str, str]) -> None:
        super().__init__(lambda prompt: GO)
        self.slow, self.until, self.began = slow, until, time.monotonic()

    def step(self) -> list[Completion]:
        assert time.monotonic() - self.began < WAIT, f"a barrier: {self.events}"
        time.sleep(0.001)
        held = {} if self.until in self.events else {k: v for k, v in self._running.items() if k.startswith(self.slow)}
        self._running = {k: v for k, v in self._running.items() if k not in held}
        finished = super().step()
        self._running |= held
        return finished


def test_no_barrier_between_turns() -> None:
    engine = Gated("0.0", until=("finish", "1.4"))
    slow, fast = roll(requests(3, 5), engine)
    assert (len(slow.turns), len(fast.turns)) == (3, 5)
    assert engine.events.index(("finish", "1.4")) < engine.events.index(("finish", "0.0"))


def test_slow_environment_does_not_hold_up_the_others() -> None:
    """One environment answers only when the other trajectory is over; a collector that waits for it would hang."""
    over = threading.Event()

    class Slow(Walk):
        def step(self, action: str) -> Any:
            if self.seed == 1 and not over.wait(WAIT):
                raise AssertionError("decoding stalled")
            answer = super().step(action)
            if self.seed == 9 and answer[2]:
                over.set()
            return answer

    slow, fast = roll(requests(1, 9), envs=Envs(Slow), env_threads=2)
    assert (slow.status, fast.status) == (Status.FAILURE, Status.FAILURE)
    assert (len(slow.turns), len(fast.turns)) == (1, 9)


def test_engine_sleeps_while_only_environments_work() -> None:
    class Sleepy(Walk):
        def step(self, action: str) -> Any:
            time.sleep(0.05)
            return super().step(action)

    engine = ScriptedEngine(lambda prompt: GO, steps=lambda request: 3)
    roll(requests(4), engine, Envs(Sleepy))
    assert engine.steps_taken == 12  # 4 turns of 3 steps: not one idle step


def test_finished_trajectories_cost_nothing() -> None:
    engine = ScriptedEngine(lambda prompt: GO)
    roll(requests(1, 5, 2), engine)
    assert sorted(r.request_id for r in engine.requests) == ["0.0", "1.0", "1.1", "1.2", "1.3", "1.4", "2.0", "2.1"]


@pytest.mark.parametrize(
    ("terminated", "truncated", "success", "status"),
    [
        (True, False, True, Status.SUCCESS),
        (True, False, False, Status.FAILURE),
        (False, True, True, Status.SUCCESS),
        (False, True, False, Status.TRUNCATED_TURNS),
        (True, True, False, Status.FAILURE),
    ],
)
def test_status_follows_the_environment(terminated: bool, truncated: bool, success: bool, status: Status) -> None:
    class Ends(Walk):
        def step(self, action: str) -> Any:
            return "end", 0.5, terminated, truncated, {"success": success}

    (trajectory,) = roll(requests(1), envs=Envs(Ends))
    assert (trajectory.status, trajectory.reward, len(trajectory.turns)) == (status, 0.5, 1)


def test_prompt_that_fills_the_context_has_no_turns() -> None:
    # <u> b e g i n </s> <a> are 8 tokens
    engine, envs = ScriptedEngine(lambda prompt: GO), Envs()
    (trajectory,) = roll(requests(1), engine, envs, context=8)
    assert (trajectory.status, trajectory.turns, engine.requests) == (Status.TRUNCATED_TOKENS, [], [])
    assert envs.made[0].heard == []
    (one_token,) = roll(requests(1), ScriptedEngine(lambda prompt: GO), context=9)
    assert [t.completion_ids for t in one_token.turns] == [GO[:1]]


def test_completion_cut_by_the_turn_limit_still_acts() -> None:
    envs = Envs()
    (trajectory,) = roll(requests(2), ScriptedEngine(lambda prompt: [10] * 50 + [END]), envs, turn=4)
    assert envs.made[0].heard == ["aaaa", "aaaa"]
    assert [t.finish_reason for t in trajectory.turns] == ["length", "length"]
    assert trajectory.status is Status.SUCCESS
    assert count_splits(trajectory) == 0


def test_completion_cut_by_the_context_ends_the_trajectory() -> None:
    # turn 0: 8 prompt tokens + "go</s>" + "<u>heard go</s><a>" (11) = 22; a context of 24 leaves 2 for turn 1
    envs = Envs()
    (trajectory,) = roll(requests(5), ScriptedEngine(lambda prompt: GO), envs, context=24)
    assert trajectory.status is Status.TRUNCATED_TOKENS
    assert [(len(t.prompt_ids), t.completion_ids, t.finish_reason) for t in trajectory.turns] == [
        (8, GO, "stop"),
        (22, GO[:2], "length"),
    ]
    assert envs.made[0].heard == ["go"]
    (exact,) = roll(requests(5), ScriptedEngine(lambda prompt: GO), context=25)  # the stop token just fits: it acts
    assert [len(t.completion_ids) for t in exact.turns] == [3, 3]
    assert exact.metrics["steps"] == 2.0
    assert exact.status is Status.TRUNCATED_TOKENS


def test_max_tokens_is_the_smaller_limit() -> None:
    engine = ScriptedEngine(lambda prompt: GO)
    roll(requests(5), engine, turn=10, context=40)
    assert [(len(r.prompt_ids), r.max_tokens) for r in engine.requests] == [(8, 10), (22, 10), (36, 4)]


def test_environments_are_reused_and_used_by_one_thread_at_a_time() -> None:
    envs = Envs()
    collecting = collector(ScriptedEngine(lambda prompt: GO), envs, env_threads=4, max_active=6)
    for _ in range(3):
        collecting.collect(requests(*range(20)), Sampling())
    assert len(envs.made) <= 6
    assert sum(e.episodes for e in envs.made) == 60
    assert threading.get_ident() not in set().union(*(e.threads for e in envs.made))  # never on the engine's thread
    collecting.close()
    assert all(e.closed for e in envs.made)


class Seeded(ScriptedEngine):
    """Answers depend on the prompt and the request's seed; finishes after a random number of steps."""

    def __init__(self, order: int) -> None:
        rng = random.Random(order)
        super().__init__(lambda prompt: GO, steps=lambda request: rng.randint(1, 6))

    def _complete(self, request: Request) -> Completion:
        rng = random.Random(f"{request.seed} {request.prompt_ids}")
        ids = rng.choices(range(10, 36), k=rng.randint(1, 6))
        return Completion(
            request_id=request.request_id,
            token_ids=[*ids, END],
            logprobs=[-rng.random() for _ in range(len(ids) + 1)],
            finish_reason="stop",
            policy_version=0,
        )


def test_trajectories_do_not_depend_on_batching_order() -> None:
    wanted = requests(*range(12)) + [RolloutRequest(task="walk", seed=5, group=5, sample=s) for s in (1, 2)]

    def run(order: int, shuffled: list[int], sampling_seed: int = 3, **kw: Any) -> list[Trajectory]:
        collecting = collector(Seeded(order), **kw)
        found = collecting.collect([wanted[i] for i in shuffled], Sampling(), sampling_seed=sampling_seed)
        collecting.close()
        return [found[shuffled.index(i)] for i in range(len(wanted))]

    plain = run(0, list(range(14)))
    assert plain == run(1, random.Random(1).sample(range(14), 14), env_threads=1, max_active=3)
    assert plain != run(0, list(range(14)), sampling_seed=4)
    assert plain[5].turns[0].completion_ids != plain[12].turns[0].completion_ids != plain[13].turns[0].completion_ids


def test_sampling_seeds_differ_in_every_field_and_stay() -> None:
    def of(turn: int = 0, sampling_seed: int = 0, **fields: Any) -> int:
        request = RolloutRequest(**{"task": "a", "seed": 1, "group": 2, "sample": 3, **fields})
        return sampling_seed_of(request, turn, sampling_seed)

    changed = [of(task="b"), of(seed=2), of(group=3), of(sample=4), of(turn=1), of(sampling_seed=1)]
    assert len({of(), *changed}) == 7
    assert all(0 <= s < 2**63 for s in changed)
    assert of() == of() == 5355064863708758416  # the same on every machine and in every process


def test_progress_and_figures() -> None:
    seen: list[tuple[int, int]] = []
    collecting = collector(ScriptedEngine(lambda prompt: GO))
    trajectories = collecting.collect(requests(1, 2, 3), Sampling(), progress=lambda n, of: seen.append((n, of)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    stats = collecting.last
    assert stats is not None
    assert (stats.turns, stats.generated_tokens, stats.env_errors, stats.row_splits) == (6, 18, 0, 0)
    assert stats.prompt_tokens == sum(len(t.prompt_ids) for tr in trajectories for t in tr.turns)
    assert stats.tokens_per_second == pytest.approx(18 / stats.seconds)
    assert collecting.collect([], Sampling()) == []
    collecting.close()


def test_fresh_prompt_environments_get_a_new_conversation_each_turn() -> None:
    class Fresh(Walk):
        fresh_prompt = True
        system_prompt = "play"

    collecting = collector(ScriptedEngine(lambda prompt: GO), Envs(Fresh))
    (trajectory,) = collecting.collect(requests(3), Sampling())
    system = [1, 25, 21, 10, 34, END]
    assert [t.prompt_ids[:6] for t in trajectory.turns] == [system] * 3
    assert [len(t.prompt_ids) for t in trajectory.turns] == [14, 17, 17]
    assert collecting.last is not None
    assert collecting.last.row_splits == 2 == count_splits(trajectory)
    collecting.close()


def test_prepare_reaches_an_environment_once_per_seed_and_never_fails(caplog: pytest.LogCaptureFixture) -> None:
    prepared: list[int] = []

    class Prepares(Walk):
        def prepare(self, seed: int) -> None:
            if seed == 2:
                raise RuntimeError("no disk")
            prepared.append(seed)

    collecting = collector(ScriptedEngine(lambda prompt: GO), Envs(Prepares))
    collecting.prepare([*requests(1, 1, 2, 3), RolloutRequest(task="walk", seed=3, group=9, sample=1)])
    deadline = time.monotonic() + WAIT
    while prepared != [1, 3] and time.monotonic() < deadline:
        time.sleep(0.005)
    assert prepared == [1, 3]
    assert "no disk" in caplog.text
    collecting.close()


class AnsweredLate(EnvPool):
    """Answers a reset once `answers` waits for it, and a step never."""

    def prepare(self, task: str, seed: int) -> None:
        pass

    def close(self) -> None:
        pass

    def _send(self, call: Call) -> None:
        if call.action is None:
            late = lambda: self._received.put((call, Answer(observation=f"{call.number}")))  # noqa: E731
            threading.Timer(0.02 * call.number, late).start()

    def _free(self, episode: Episode) -> None:
        pass


def test_an_engine_on_the_same_cores_waits_a_moment_for_each_answer() -> None:
    pool = AnsweredLate()
    for number in (1, 2, 3):
        pool.reset(number, "task", 0)
    assert [number for number, _ in pool.answers(wait=False, patience=60.0)] == [1, 2, 3]
    waited: list[bool] = []

    class Empty:
        def get(self, *, block: bool, timeout: float) -> None:
            waited.append(block)
            raise queue.Empty

    pool._received = Empty()  # type: ignore[assignment]
    pool.step(1, "go")
    for _ in range(2):
        assert pool.answers(wait=False, patience=60.0) == []
    assert waited == [True, False]  # nothing asked since: a slow environment is not waited for again


def test_only_an_engine_on_the_same_cores_waits_for_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(lambda prompt: GO)
    collecting = collector(engine)
    given: set[float] = set()
    answers = collecting._envs.answers

    def noted(*, wait: bool, patience: float) -> list[tuple[int, Answer]]:
        given.add(patience)
        return answers(wait=wait, patience=patience)

    monkeypatch.setattr(collecting._envs, "answers", noted)
    apart = collecting.collect(requests(1, 2, 3), Sampling())
    assert given == {0.0}
    engine.shares_cores = True
    given.clear()
    assert collecting.collect(requests(1, 2, 3), Sampling()) == apart
    assert given == {PATIENCE}
    del engine.shares_cores  # an engine of one's own that was written before there was such a thing
    given.clear()
    assert collecting.collect(requests(1, 2, 3), Sampling()) == apart
    assert given == {0.0}
    collecting.close()
