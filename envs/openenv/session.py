"""One session of an episode on an OpenEnv server: the client's half of its WebSocket protocol.

Versions 0.2 to 0.10 of openenv speak the same. openenv's own client is not used, since its present versions and
vLLM 0.32 need different versions of the package mcp.
"""

import json
import logging
import random
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import httpx2

from opdlight.errors import ConfigError, EnvError, MissingDependencyError

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds between two attempts; doubled after each
CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 1.0  # longest wait for the server's answer to the end of a session
LARGEST_MESSAGE = 64 * 2**20  # bytes
SHOWN = 400  # characters of a server's message that an error repeats
log = logging.getLogger(__name__)


class Unavailable(Exception):
    """An attempt failed in a way that another one may not: the server is down, restarts, or has no free session."""


class Refused(Exception):
    """The server answers a message with an error; `code` is OpenEnv's WSErrorCode, such as VALIDATION_ERROR."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def retry(call: Callable[[], T], url: str, retries: int) -> tuple[T, int]:
    """The result of `call`, which is repeated while it raises Unavailable, and how often it was repeated.

    Raises:
        ConfigError: naming `url`, after `retries` repetitions with pauses of 0.5, 1, 2, 4, 8, 8 … seconds.
    """
    for attempt in range(retries + 1):
        try:
            return call(), attempt
        except Unavailable as error:
            problem = error
        if attempt == 0 and retries:
            log.warning(
                "The OpenEnv server %s (`url`): %s. It is asked again, %d times at most.", url, problem, retries
            )
        if attempt < retries:
            time.sleep(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * random.Random().uniform(0.5, 1.0))
    expected = f"the address of an OpenEnv server that answers ({problem}, in {retries + 1} attempts: see `retries`)"
    raise ConfigError.wrong("url", expected=expected, got=url) from problem


class Session:
    """A session of a server, with an environment of its own there; it is used by one thread at a time.

    Args:
        url: address of the server.
        timeout: longest wait for an answer, in seconds.

    Raises:
        MissingDependencyError: without the package websockets.
    """

    def __init__(self, url: str, timeout: float) -> None:
        try:
            import websockets.sync.client  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError.extra("A client of an OpenEnv server", "openenv") from error
        self.url, self.timeout = url, timeout
        self._connection: Any = None
        self._stack = ExitStack()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None

    def open(self) -> None:
        """Connect; raises Unavailable."""
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        try:
            self._connection = self._stack.enter_context(
                connect(
                    f"ws{self.url.removeprefix('http')}/ws",
                    open_timeout=min(CONNECT_SECONDS, self.timeout),
                    close_timeout=CLOSE_SECONDS,
                    ping_interval=None,  # a step that keeps the server busy is limited by `timeout` alone
                    max_size=LARGEST_MESSAGE,
                    proxy=None if is_local(self.url) else True,
                )
            )
        except (OSError, WebSocketException) as error:
            raise Unavailable(f"no session ({reason(error)})") from error

    def ask(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """The data of the answer to a message.

        Raises:
            Refused: if the answer is an error of this message.
            Unavailable: if the connection is lost, or the server has no free session. The session is closed then.
            EnvError: after `timeout`, or an answer that is none of the protocol's. The session is closed then.
        """
        from websockets.exceptions import ConnectionClosed

        assert self._connection is not None
        try:
            with suppress(ConnectionClosed):  # a server without a free session says so and closes: that is read below
                self._connection.send(json.dumps({"type": kind, "data": data}))
            raw = self._connection.recv(timeout=self.timeout)
        except TimeoutError as error:
            self.close()
            raise EnvError(f"{self.url} did not answer a {kind} within `timeout` = {self.timeout:g} s.") from error
        except (ConnectionClosed, OSError) as error:
            self.close()
            raise Unavailable(f"the connection was lost ({reason(error)})") from error
        reply = parse_json(raw)
        content = reply.get("data") if isinstance(reply, dict) and isinstance(reply.get("type"), str) else None
        if not isinstance(content, dict):
            self.close()
            raise EnvError(f"Expected {self.url} to answer a {kind} in OpenEnv's protocol, but got {raw[:SHOWN]!r}.")
        if reply["type"] != "error":
            return content
        code, message = str(content.get("code")), str(content.get("message"))
        if code == "CAPACITY_REACHED":
            self.close()
            raise Unavailable(
                f"it has only {content.get('max_sessions', 'so many')} sessions, and every episode in play takes one: "
                "start it with a larger max_concurrent_envs, which takes a class with SUPPORTS_CONCURRENT_SESSIONS"
            )
        problems = [p for p in content.get("errors") or [] if isinstance(p, dict)]
        told = [f"{'.'.join(map(str, p.get('loc', [])))}: {p.get('msg')}" for p in problems]
        raise Refused(code, "; ".join(told) or message)

    def close(self) -> None:
        """End the session, if there is one: the server closes its environment."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with suppress(Exception):  # closed already
            connection.send(json.dumps({"type": "close"}))
        with suppress(Exception):
            self._stack.close()


def is_local(url: str) -> bool:
    """Whether a server is on this machine, which no proxy reaches."""
    return httpx2.URL(url).host in ("localhost", "127.0.0.1", "::1")


def parse_json(text: str | bytes) -> Any:
    """The value, or None of text that is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def reason(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__} {error}".split()).rstrip(".")[:SHOWN]
