"""The next batch, rolled out in a thread while the student learns from this one."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from opdlight.types import Trajectory


class Ahead:
    """At most one batch that is being rolled out, or has been and waits."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._batch: Future[list[Trajectory]] | None = None

    def __bool__(self) -> bool:
        """Is there one?"""
        return self._batch is not None

    def start(self, roll_out: Callable[[], list[Trajectory]]) -> None:
        """Begin it."""
        self._batch = self._thread.submit(roll_out)

    def put(self, trajectories: Sequence[Trajectory]) -> None:
        """One that was rolled out before, by a run that has stopped since."""
        self._batch = Future()
        self._batch.set_result(list(trajectories))

    def peek(self) -> list[Trajectory]:
        """Wait for it; an error of the rollout is raised here."""
        assert self._batch is not None
        return self._batch.result()

    def take(self) -> list[Trajectory]:
        """Wait for it, and have none from then on."""
        trajectories = self.peek()
        self._batch = None
        return trajectories

    def rest(self) -> None:
        """Wait until nothing is being rolled out."""
        if self._batch is not None:
            wait([self._batch])

    @property
    def going_on(self) -> bool:
        """Is one being rolled out right now?"""
        return self._batch is not None and not self._batch.done()
