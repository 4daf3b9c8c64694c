"""What every rollout test leaves behind: nothing."""

import threading
import time
from collections.abc import Iterator

import pytest

from tests.rollout.walking import WAIT


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    deadline = time.monotonic() + WAIT
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.005)
