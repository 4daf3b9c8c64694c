"""Ctrl-C: the first stops a command in order and says so at once, the second ends the process."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from opdlight.system.console import clear, is_first_process, say

STOPPING = "Ctrl-C: stopping. Once more ends it at once."
_said = threading.Event()


def exit_code() -> int:
    """What a shell expects of a command that Ctrl-C stopped; 0 of helpers, whose failure would get the first killed."""
    return 130 if is_first_process() else 0


class Interrupted(SystemExit):
    """Ctrl-C came. Not a KeyboardInterrupt, which Lightning would make its own end of."""

    def __init__(self) -> None:
        super().__init__(exit_code())


@contextmanager
def listening() -> Iterator[None]:
    """Within, the first Ctrl-C raises `Interrupted` in the main thread, or does what a later handler wants.

    The line on the terminal and the second Ctrl-C wait for nothing: Python would run its handlers only when a long
    computation of torch or the engine has returned, so a thread reads the signals from a socket.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.signal(signal.SIGINT, _raise), signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(reader,), daemon=True, name="ctrl-c")
    _said.clear()
    thread.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.set_wakeup_fd(before[1])
        writer.close()
        thread.join()
        reader.close()


def leave_to_parent() -> None:
    """For a worker process: a terminal sends Ctrl-C to all, and the parent ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def await_line() -> None:
    """For a handler of Ctrl-C: let the line that it stops come before what else there is to say."""
    _said.wait(10.0)  # not for ever: the main thread may hold what the line needs


def _raise(number: int, frame: FrameType | None) -> None:
    await_line()
    raise Interrupted


def _listen(reader: socket.socket) -> None:
    asked = False
    while received := reader.recv(1):
        if received[0] != signal.SIGINT:
            continue
        if asked:
            os._exit(exit_code())
        asked = True
        clear()
        say(STOPPING)
        _said.set()
