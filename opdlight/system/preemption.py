"""SIGTERM and Ctrl-C end a run in order: at most the current rollout is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from opdlight.system.interrupt import await_acknowledgement, exit_code

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Preempted(SystemExit):
    """Ends the process after SIGTERM (exit code 0) or Ctrl-C (exit code 130).

    Args:
        between_steps: no step is half done, so the state can be saved as a checkpoint.
        number: the signal's number.
    """

    def __init__(self, *, between_steps: bool, number: int = signal.SIGTERM) -> None:
        super().__init__(exit_code() if number == signal.SIGINT else 0)
        self.between_steps = between_steps
        self.why = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"


class Preemption:
    """Handles SIGTERM and Ctrl-C inside a `with` block.

    While `busy` is False, a signal raises `Preempted` at once. While it is True, a signal only sets `asked`; the
    callback that writes checkpoints reads it at the next step and raises `Preempted` then.
    """

    def __init__(self) -> None:
        self.asked = False  # a signal has come
        self.busy = False  # a step is half done: the state cannot be saved now
        self.rolling_out = False  # a step has begun, but has not changed the state yet
        self.rollout_lost = False  # the signal interrupted a rollout; no checkpoint contains its trajectories
        self.number: int = signal.SIGTERM  # the signal that came last
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Install the handlers, in place of Lightning's, which would end a run without a checkpoint."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                signal.signal(number, self._hear)

    @contextmanager
    def window(self, *, rolling_out: bool, alone: bool) -> Iterator[None]:
        """Within, nothing is half done: the signal need not wait. One that came just before ends the block at once.

        Args:
            rolling_out: the block is the rollout of a step, which has changed nothing yet.
            alone: no other process would wait for this one.
        """
        before = self.busy, self.rolling_out
        self.busy, self.rolling_out = not alone, rolling_out
        try:
            if self.asked and alone:
                raise Preempted(between_steps=rolling_out, number=self.number)
            yield
        finally:
            self.busy, self.rolling_out = before

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            await_acknowledgement()
        self.asked, self.number = True, number
        if not self.busy:
            self.rollout_lost = self.rolling_out
            raise Preempted(between_steps=self.rolling_out, number=number)

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in STOPPING}
        self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                signal.signal(number, before)
