"""How OpenMP's threads wait for one another; OpenMP reads it when it is loaded, so it is chosen before torch is."""

import os

POLICY = "OMP_WAIT_POLICY"
_CHOSEN_BY_USER = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def choose_wait_policy() -> None:
    """Let waiting threads sleep, unless the user has chosen: trainer, engine and environments share the cores.

    A thread that spins while it waits holds a core that another of them needs. `tools/bench_threads.py` measures both.
    """
    if not any(name in os.environ for name in _CHOSEN_BY_USER):
        os.environ[POLICY] = "passive"


def describe() -> str:
    """What this process uses, in words: number of threads, and how they wait."""
    import torch

    threads = torch.get_num_threads()
    chosen = [f"{name}={os.environ[name]}" for name in _CHOSEN_BY_USER if name in os.environ]
    return f"{threads} CPU thread{'s' * (threads != 1)} ({', '.join(chosen) or 'OpenMP decides how they wait'})"
