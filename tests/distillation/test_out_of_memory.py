"""What a resumed run knows of the lack of memory before."""

import pytest

from opdlight.distillation.out_of_memory import OutOfMemory


@pytest.mark.parametrize(("config", "count", "expected"), [(400, 0, 400), (50, 0, 50), (400, 1, 100), (50, 1, 50)])
def test_a_resumed_run_keeps_a_halved_budget_and_else_follows_its_config(
    config: int, count: int, expected: int
) -> None:
    resumed = OutOfMemory(config, print, whole_trajectories=False)
    resumed.load_state_dict({"count": count, "budget": 100})
    assert (resumed.budget, resumed.count) == (expected, count)
