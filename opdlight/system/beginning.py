"""How a process begins: settings that have to be made before torch is imported."""

import sys

from opdlight.system.heap import keep_freed_memory
from opdlight.system.threads import choose_wait_policy


def begin() -> None:
    """Choose how threads wait and what becomes of freed memory, as the user has not."""
    choose_wait_policy()
    keep_freed_memory()


def begin_script() -> None:
    """`begin` for a script, and say that its libraries are loaded, which takes seconds; nothing if torch is there."""
    if "torch" not in sys.modules:
        begin()
        print("loading libraries", file=sys.stderr, flush=True)
