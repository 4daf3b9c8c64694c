"""The trajectories of each step: which this rank rolls out, when, and by which weights."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from opdlight.rollout.collector import Collector
from opdlight.rollout.engines.base import Sampling
from opdlight.rollout.prefetch import Prefetch
from opdlight.system.console import progress
from opdlight.system.distributed import all_gather, all_gather_shares, share, world_size
from opdlight.system.preemption import Preemption
from opdlight.system.timer import Timer
from opdlight.types import RolloutRequest, Status, Trajectory, Turn


class Policy(Protocol):
    """What rolls out: a student's weights, by their Hugging Face checkpoint names."""

    def named_weights(self) -> Iterable[tuple[str, Tensor]]:
        """Each weight once, detached."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What sending the weights to this rank's engine took."""

    bytes: float  # of the weights as they were sent, in the engine's dtype
    seconds: float  # wall time: waking the engine, gathering, sending and loading


class RolloutSource:
    """Rolls out this rank's share of each step. One rule for the weights: they are published before any rollout.

    The engine is awake only while it is sent weights and rolls out, and lends its memory to the training in between.
    With `staleness` 1 it rolls out during the training, too, and never sleeps.

    The trajectories of a step are dealt to the ranks one by one, not by groups: no rank is idle where there are fewer
    groups than ranks, and the lengths, which are alike within a group, are spread. The price is that each rank that
    plays an episode prefills its first prompt.

    Args:
        collector: makes environments × engine, when the first trajectory or `start` asks for it: with several
            processes that is once they have found each other.
        sampling: the rollout policy of training.
        evaluation: that of held-out episodes; by default the same.
        seed: makes the sampling seeds.
        staleness: 0 rolls out when a step asks; 1 rolls the next step out in a thread while this one trains, by a
            student that is one update older.
        preemption: what listens to SIGTERM; while a rollout runs it need not wait, because nothing is half done.

    `on_progress` is called with (finished, wanted) trajectories.
    """

    def __init__(
        self,
        collector: Callable[[], Collector],
        *,
        sampling: Sampling,
        evaluation: Sampling | None = None,
        seed: int = 1,
        staleness: Literal[0, 1] = 0,
        preemption: Preemption | None = None,
    ) -> None:
        self.make_collector, self.sampling, self.evaluation = collector, sampling, evaluation or sampling
        self.seed, self.staleness = seed, staleness
        self.preemption, self.timer = preemption or Preemption(), Timer()
        self.on_progress: Callable[[int, int], None] | None = None
        self.prefetch = Prefetch()
        self.published: Publication | None = None  # the last one, of an engine that counts its bytes
        self._collector: Collector | None = None

    @property
    def collector(self) -> Collector:
        """Environments × engine; starts the engine at the first call."""
        if self._collector is None:
            with progress("starting the engine"):
                self._collector = self.make_collector()
        return self._collector

    def start(self) -> None:
        """Start the engine now; it sleeps until the first rollout."""
        _ = self.collector
        self._sleep()

    def close(self) -> None:
        """Give up a rollout in the background; stop the environments and the engine."""
        if self._collector is not None:
            self._collector.cancel()
            self.prefetch.wait()
            with closing(self._collector.engine), closing(self._collector):
                pass  # the engine ends too where an environment does not
            self._collector = None

    def train(
        self,
        requests: Sequence[RolloutRequest],
        following: Sequence[RolloutRequest] | None,
        *,
        step: int,
        policy: Policy,
        version: int,
    ) -> list[Trajectory]:
        """This rank's trajectories of a step; those of the `following` one are begun, or their environments prepared.

        Args:
            requests: of all ranks.
            following: of the next step; None if this is the last.
            step: number of this step, from 0; part of the sampling seeds.
            policy: the student.
            version: its update count.
        """
        if self.prefetch.step not in (None, step):  # of a training loop that ended early
            self.prefetch.drop()
        if self.prefetch:
            with self.timer("rollout"), self._window(rolling_out=True):
                trajectories = self.prefetch.take()
                all_gather(None)  # the rollout has ended when the slowest rank has
        else:
            self.publish(policy, version)
            with self.timer("rollout"), self._window(rolling_out=True):
                trajectories = self._roll_out(share(requests), self.sampling, seed=self.seed + 1 + step)
                all_gather(None)
            self._sleep()
        if following is not None and self.staleness:
            self.publish(policy, version)
            coming, seed = share(following), self.seed + 2 + step
            self.prefetch.start(step + 1, lambda: self._roll_out(coming, self.sampling, seed=seed))
        elif following is not None:
            self.collector.prepare(share(following))
        return trajectories

    def evaluate(self, requests: Sequence[RolloutRequest], *, policy: Policy, version: int) -> list[Trajectory]:
        """This rank's trajectories of held-out episodes of one task, by the newest weights."""
        self.publish(policy, version)
        with self.timer(f"evaluate {requests[0].task}"), self._window(rolling_out=False):
            trajectories = self._roll_out(share(requests), self.evaluation, seed=0)
        self._sleep()
        return trajectories

    def publish(self, policy: Policy, version: int) -> None:
        """⑤ Wake the engine and send it the weights if it has others, once no rollout runs."""
        self.prefetch.wait()
        engine = self.collector.engine
        start, sent = time.perf_counter(), engine.stats().get("update_bytes")
        engine.wake()
        if engine.policy_version != version:
            with self.timer("publish"):
                engine.update_weights(policy.named_weights(), version)
            if sent is not None:
                bytes_sent = engine.stats()["update_bytes"] - sent
                self.published = Publication(bytes=bytes_sent, seconds=time.perf_counter() - start)

    def _sleep(self) -> None:
        if not self.staleness:
            self.collector.engine.sleep()

    def state_dict(self) -> dict[str, Any]:
        """What was rolled out for the next step, by all ranks, as plain values; every rank must call it.

        A process that was asked to stop does not wait for a rollout: it is lost, and done again after a resume by a
        student that is newer by one update.
        """
        lost = any(all_gather(self.preemption.asked and self.prefetch.running))
        if not all(all_gather(bool(self.prefetch))):
            return {}
        self.preemption.rollout_lost = lost
        if lost:
            return {}
        found = all_gather_shares(self.prefetch.peek())
        return {"step": self.prefetch.step, "prefetched": [_plain(trajectory) for trajectory in found]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take this rank's share of what was rolled out before; without `staleness` it is rolled out again."""
        if self.staleness and "prefetched" in state:
            self.prefetch.put(state["step"], [_trajectory(plain) for plain in share(state["prefetched"])])

    def _roll_out(self, requests: Sequence[RolloutRequest], sampling: Sampling, seed: int) -> list[Trajectory]:
        return self.collector.collect(requests, sampling, sampling_seed=seed, progress=self.on_progress)

    def _window(self, *, rolling_out: bool) -> AbstractContextManager[None]:
        return self.preemption.window(rolling_out=rolling_out, alone=world_size() == 1)


def _plain(trajectory: Trajectory) -> dict[str, Any]:
    return {**asdict(trajectory), "status": str(trajectory.status)}


def _trajectory(plain: Mapping[str, Any]) -> Trajectory:
    turns = [Turn(**turn) for turn in plain["turns"]]
    return Trajectory(**{**plain, "turns": turns, "status": Status(plain["status"])})
