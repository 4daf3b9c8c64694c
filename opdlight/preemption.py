"""SIGTERM ends a run in order: a machine that is taken away costs at most the rollout that was going on."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Preempted(SystemExit):
    """SIGTERM came; the process ends with exit code 0.

    Args:
        between_steps: the state is that after a whole step, so a checkpoint can be made of it.
    """

    def __init__(self, *, between_steps: bool) -> None:
        super().__init__(0)
        self.between_steps = between_steps


class Preemption:
    """Listens to SIGTERM inside a `with` block.

    While nothing is half done, `Preempted` is raised at once; else `asked` is set, for the one who knows a good moment.
    """

    def __init__(self) -> None:
        self.asked = False
        self.busy = False  # something is half done
        self.rolling_out = False  # a step has begun and changed nothing yet
        self._before: Any = None

    def listen(self) -> None:
        """Take the signal, from Lightning too, whose handler ends a run without a checkpoint."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self.busy:
            raise Preempted(between_steps=self.rolling_out)

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGTERM)
        self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
