"""Child processes end when their parent does, even when the parent was killed and could not stop them."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

LAUNCHER = "OPDLIGHT_LAUNCHER"  # environment variable with the id of the process that launched the other ranks
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def follow_launcher() -> None:
    """In a rank that Lightning launched: end with the launching process. In any other: announce itself as launcher.

    Ranks that torchrun, SLURM or a person has started find no launcher and are left alone.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None and os.environ.get("LOCAL_RANK", "0") != "0":
        end_with(int(launcher))
    os.environ[LAUNCHER] = str(os.getpid())


def end_with(parent: int) -> None:
    """Have this process killed when `parent` ends: at once on Linux, elsewhere within a second."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=poll, args=(parent,), daemon=True, name="parent").start()
    if os.getppid() != parent:  # the parent ended before the line above took effect
        os.kill(os.getpid(), signal.SIGKILL)


def poll(parent: int, seconds: float = 1.0) -> None:
    """Check every `seconds` whether `parent` is still this process's parent, and kill this process when it is not."""
    while os.getppid() == parent:
        time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def end_with_parent() -> None:
    """`end_with` the current parent; a worker process calls it first."""
    end_with(os.getppid())


def sigterm_with_parent() -> Callable[[], object] | None:
    """For `subprocess.Popen(preexec_fn=…)`: the command gets SIGTERM when this process ends, even when it was killed.

    None where the system cannot do that (only Linux can).
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded here: between fork and exec little may happen
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
