"""What tests with real engines share."""

from collections.abc import Iterator

import pytest
import torch

from opdlight.run_folder import summary


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave `curves.png` out, which takes half of the time of a small run."""
    monkeypatch.setattr(summary, "curves", lambda folder: None)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Two threads would wait for each other wherever the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
