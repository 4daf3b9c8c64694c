"""Which process is the first, told by the launcher's variables, before the processes have met."""

import os
import subprocess
import sys

import pytest

from opdlight.system.console import rank_at_start


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"NODE_RANK": "0"}, True),
        ({"NODE_RANK": "1"}, False),  # the process that starts the others of its node
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),  # torchrun
        ({"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
    ids=str,
)
def test_the_first_process_of_the_first_node_is_the_first(variables: dict[str, str], first: bool) -> None:
    assert (rank_at_start(variables) == 0) is first


def test_lightning_is_told() -> None:
    says = "import opdlight.system.console as c, lightning.fabric.utilities.rank_zero as z\n"
    says += "print(c.is_first_process(), z.rank_zero_only.rank)"
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "NODE_RANK": "1"}
    assert subprocess.check_output([sys.executable, "-c", says], env=environment, text=True).split() == ["False", "1"]
