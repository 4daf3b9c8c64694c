"""Ctrl-C: the first one stops a command in order and is acknowledged at once, a second one ends the process."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from opdlight.system.console import clear, is_first_process, say

STOPPING = "Ctrl-C: stopping. Once more ends it at once."
_acknowledged = threading.Event()  # STOPPING has been printed, or nobody will print it
_acknowledged.set()


def exit_code() -> int:
    """The exit code after Ctrl-C: 130, as shells expect; 0 in a process that is not the first.

    Lightning's launcher would kill the first process, before it has ended in order, if another one failed.
    """
    return 130 if is_first_process() else 0


class Interrupted(SystemExit):
    """Ctrl-C stops the command. Not a KeyboardInterrupt, because Lightning handles that one itself."""

    def __init__(self) -> None:
        super().__init__(exit_code())


@contextmanager
def stop_on_ctrl_c() -> Iterator[None]:
    """In the block, the first Ctrl-C raises `Interrupted` in the main thread, and a second one ends the process.

    A handler of SIGINT that is installed later decides instead what the first Ctrl-C does. The acknowledgement and the
    second Ctrl-C do not depend on handlers: Python runs those only between two bytecodes of the main thread, which may
    take long inside torch or an engine, so a thread reads the signals from the wake-up socket.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.signal(signal.SIGINT, _raise), signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(reader,), daemon=True, name="ctrl-c")
    _acknowledged.clear()
    thread.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.set_wakeup_fd(before[1])
        writer.close()
        thread.join()
        reader.close()
        _acknowledged.set()


def leave_to_parent() -> None:
    """Ignore Ctrl-C in a worker process: a terminal sends it to all processes, and the parent stops its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def await_acknowledgement() -> None:
    """Wait until `STOPPING` is printed; a handler of Ctrl-C calls this before it prints anything else."""
    _acknowledged.wait(10.0)  # not forever: the interrupted main thread may hold the lock that printing needs


def _raise(number: int, frame: FrameType | None) -> None:
    await_acknowledgement()
    raise Interrupted


def _listen(reader: socket.socket) -> None:
    asked = False  # one Ctrl-C has come
    while received := reader.recv(1):
        if received[0] != signal.SIGINT:
            continue
        if asked:
            os._exit(exit_code())
        asked = True
        clear()
        say(STOPPING)
        _acknowledged.set()
