"""The next batch, rolled out in a thread while the student learns from this one."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from opdlight.types import Trajectory


class Prefetch:
    """At most one batch, which is being rolled out in a thread or is finished and waits; true if there is one."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._batch: Future[list[Trajectory]] | None = None
        self.step: int | None = None  # that the batch is for

    def __bool__(self) -> bool:
        return self._batch is not None

    def start(self, step: int, roll_out: Callable[[], list[Trajectory]]) -> None:
        """Roll out in the thread, for this step."""
        self._batch, self.step = self._thread.submit(roll_out), step

    def put(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Hold a finished batch, such as one from a checkpoint."""
        self._batch, self.step = Future(), step
        self._batch.set_result(list(trajectories))

    def peek(self) -> list[Trajectory]:
        """Wait for the batch and return it; an error of the rollout is raised here."""
        assert self._batch is not None
        return self._batch.result()

    def take(self) -> list[Trajectory]:
        """Wait for the batch, return it and hold none."""
        trajectories = self.peek()
        self._batch = self.step = None
        return trajectories

    def drop(self) -> None:
        """Wait for the batch and hold none; it is not used."""
        self.wait()
        self._batch = self.step = None

    def wait(self) -> None:
        """Wait until no rollout runs."""
        if self._batch is not None:
            wait([self._batch])

    @property
    def running(self) -> bool:
        """Is a rollout running right now?"""
        return self._batch is not None and not self._batch.done()
