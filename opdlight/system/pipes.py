"""Text for a pipe, which whoever reads it may close early: `… --help | head`."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def may_be_cut() -> Iterator[None]:
    """Within, a closed pipe ends the process without a word, as it ends any command of Unix. In the main thread."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
        sys.stdout.flush()
    finally:
        signal.signal(signal.SIGPIPE, before)
