"""What every rollout test leaves behind: nothing."""

import threading
import time
from collections.abc import Iterator

import pytest

from tests.rollout.walking import WAIT


def alive() -> int:
    return sum(thread.name != "tqdm_monitor" for thread in threading.enumerate())  # progress bars keep theirs


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = alive()
    yield
    deadline = time.monotonic() + WAIT
    while alive() > before and time.monotonic() < deadline:
        time.sleep(0.005)
