"""A hand-written stand-in for an OpenEnv server that plays the game `Guess` of openenv_games.py, with faults."""

import json
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Self

from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

Fault = Callable[[ServerConnection], None]  # instead of the answer to a message
FIELD = {"title": "Guess", "type": "string"}
PATHS = {
    "/schema": {"action": {"properties": {"metadata": {}, "guess": FIELD}, "required": ["guess"]}},
    "/metadata": {"name": "Guess", "description": "Find a hidden number."},
}


def hang_up(connection: ServerConnection) -> None:
    """Break the connection without a closing handshake."""
    connection.socket.shutdown(socket.SHUT_RDWR)


def silence(connection: ServerConnection) -> None:
    """Never answer."""
    connection.recv()


def say(text: str) -> Fault:
    """Answer with this."""
    return lambda connection: connection.send(text)


class FakeOpenEnv:
    """Serves on a port of this machine, in threads of this process, while it is a context."""

    def __init__(self, paths: dict[str, Any] = PATHS, sessions: int = 64) -> None:
        self.paths, self.sessions, self.active = paths, sessions, 0
        self.faults: dict[str, deque[Fault]] = {"reset": deque(), "step": deque()}
        self._server: Server = serve(self._play, "127.0.0.1", 0, process_request=self._http)
        self.url = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def waits_for(self, sessions: int) -> bool:
        """Whether so many sessions are active soon: the server's side of an end comes a little later."""
        for _ in range(1000):
            if self.active == sessions:
                return True
            time.sleep(0.01)
        return False

    def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/ws":
            return None
        found = self.paths.get(request.path)
        status = HTTPStatus.NOT_FOUND if found is None else HTTPStatus.OK
        body = json.dumps({"detail": "Not Found"} if found is None else found).encode()
        headers = Headers({"Content-Length": str(len(body)), "Content-Type": "application/json", "Connection": "close"})
        return Response(status.value, status.phrase, headers, body)

    def _play(self, connection: ServerConnection) -> None:
        if self.active >= self.sessions:
            connection.send(error("CAPACITY_REACHED", "no session is free", max_sessions=self.sessions))
            return
        self.active += 1
        number = 0
        try:
            for raw in connection:
                message = json.loads(raw)
                kind, data = message["type"], message.get("data", {})
                if kind == "close":
                    return
                if kind not in self.faults:
                    connection.send(error("UNKNOWN_TYPE", f"Unknown message type: {kind}"))
                elif self.faults[kind]:
                    self.faults[kind].popleft()(connection)
                elif kind == "reset":
                    highest = data.get("highest", 9)
                    number = random.Random(data.get("seed")).randint(1, highest)
                    connection.send(observation(f"Guess a number from 1 to {highest}.", None))
                elif set(data) != {"guess"}:
                    problem = {"type": "missing", "loc": ["guess"], "msg": "Field required"}
                    connection.send(error("VALIDATION_ERROR", "Invalid message", errors=[problem]))
                else:
                    connection.send(self._answer(data["guess"], number))
        finally:
            self.active -= 1

    def _answer(self, guess: str, number: int) -> str:
        try:
            value = int(guess)
        except ValueError as problem:
            return error("EXECUTION_ERROR", str(problem))
        if value == number:
            return observation("Right!", 1.0, done=True)
        return observation("Higher." if value < number else "Lower.", 0.0)


def observation(text: str, reward: float | None, done: bool = False) -> str:
    data = {"observation": {"text": text, "hint": None}, "reward": reward, "done": done}
    return json.dumps({"type": "observation", "data": data})


def error(code: str, message: str, **more: Any) -> str:
    return json.dumps({"type": "error", "data": {"message": message, "code": code, **more}})
