"""Processes that one of ours has started end with it, however it ended; a killed one can tell nobody."""

import ctypes
import os
import signal
import sys
import threading
import time

LAUNCHER = "OPDLIGHT_LAUNCHER"  # environment variable: the process id of the one who starts the other ranks
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def follow_launcher() -> None:
    """End with the process that launched this rank; take care that ranks which this process launches do the same.

    Ranks that torchrun, SLURM or a person has started have other parents and are left alone.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None and os.environ.get("LOCAL_RANK", "0") != "0":
        end_with(int(launcher))
    os.environ[LAUNCHER] = str(os.getpid())


def end_with(parent: int) -> None:
    """Kill this process once `parent` is not its parent any more: at once on Linux, elsewhere within a second."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=watch, args=(parent,), daemon=True, name="parent").start()
    if os.getppid() != parent:  # it died before that
        os.kill(os.getpid(), signal.SIGKILL)


def watch(parent: int, seconds: float = 1.0) -> None:
    """Look every so many seconds whether `parent` is still there; kill this process once it is not."""
    while os.getppid() == parent:
        time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def end_with_parent() -> None:
    """`end_with` the parent as it is now; for the first thing that a worker does."""
    end_with(os.getppid())
