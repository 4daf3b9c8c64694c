"""How OpenMP's threads wait for one another. Set before torch is imported: OpenMP reads it when it is loaded."""

import os

SPINS = "GOMP_SPINCOUNT"
_CHOSEN_BY_USER = (SPINS, "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def choose_wait_policy() -> None:
    """Let waiting threads spin for some microseconds and then sleep, unless the user has chosen.

    Trainer, engine and environments share the cores. A thread that spins for long occupies a core that another of them
    needs; one that sleeps at once has to be woken for every small matrix product. `tools/bench_threads.py` measures it.
    """
    if not any(name in os.environ for name in _CHOSEN_BY_USER):
        os.environ[SPINS] = "3000"


def describe() -> str:
    """The number of CPU threads of this process and how they wait, as a text for `versions.json`."""
    import torch

    threads = torch.get_num_threads()
    chosen = [f"{name}={os.environ[name]}" for name in _CHOSEN_BY_USER if name in os.environ]
    return f"{threads} CPU thread{'s' * (threads != 1)} ({', '.join(chosen) or 'OpenMP decides how they wait'})"
