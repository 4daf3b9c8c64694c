"""A client of a vLLM server: retries with backoff, errors in one sentence, the API key from the environment.

It does not import vllm, which a machine that only talks to a server need not have installed.
"""

import logging
import os
import random
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, TypeVar

import httpx2

from opdlight.errors import ConfigError, ServerError

T = TypeVar("T")
R = TypeVar("R")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds between two attempts; doubled after each
CONNECT_SECONDS = 10.0
KEEP_SECONDS = 2.0  # idle connections are closed before the server (after 5 s) closes them during a request
REASON = 400  # longest part of a server's message that an error repeats, in characters


class Unavailable(Exception):
    """An attempt failed in a way that another one may not: the server is down, slow, overloaded, or cut its reply."""


class VLLMServer:
    """One server, and how often and how long requests to it are retried. Threads may share an instance.

    Args:
        url: address of the server, such as http://127.0.0.1:8000.
        group: config group of these arguments, named in errors.
        concurrency: most requests that run at the same time.
        timeout: seconds until an attempt counts as failed.
        retries: further attempts after one that failed; pauses of 0.5, 1, 2 … 60 seconds lie between them.
        api_key_env: environment variable that holds the key of `vllm serve --api-key`; if it is unset, none is sent.

    Raises:
        ConfigError: if `url` is not the address of an HTTP server, or holds a user or a password.
    """

    def __init__(
        self,
        url: str,
        group: str,
        *,
        concurrency: int,
        timeout: float,
        retries: int,
        api_key_env: str,
    ) -> None:
        parsed = httpx2.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
            got = f"{parsed.scheme}://…@{parsed.host}" if parsed.userinfo else url
            raise ConfigError.wrong(
                f"{group}.url", expected="like http://host:8000, without user and password", got=got
            )
        self._address = parsed
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request
        self.url, self.group, self.concurrency, self.retries = url.rstrip("/"), group, concurrency, retries
        self._api_key_env, self._key = api_key_env, os.environ.get(api_key_env, "")
        self._client = httpx2.Client(
            base_url=self.url,
            timeout=httpx2.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout), pool=None),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx2.Limits(max_connections=concurrency, keepalive_expiry=KEEP_SECONDS),
        )
        weakref.finalize(self, self._client.close)
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._random = random.Random()  # of its own: jitter must not advance a seeded stream
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._stats = {"retries": 0.0, "waited": 0.0}

    def stats(self) -> dict[str, float]:
        """Totals since the start: repeated attempts, and seconds of the pauses before them, summed over requests."""
        return dict(self._stats)

    def get(self, path: str) -> Any:
        """The JSON at `path`, with retries; raises ServerError."""
        return self.retry(lambda: self.attempt("GET", path))

    def post(self, path: str, body: Any) -> Any:
        """The JSON reply to `body`, with retries; raises ServerError."""
        return self.retry(lambda: self.attempt("POST", path, body))

    def generate(self, token_ids: list[int], model: str, **sampling: Any) -> dict[str, Any]:
        """The reply to a request of one completion by token ids; the server needs `--enable-scale-out`."""
        sampling = {"detokenize": False, **sampling}
        body = {"model": model, "token_ids": token_ids, "sampling_params": sampling}
        reply = self.post("/inference/v1/generate", body)
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise self.wrong_reply("one choice", choices)
        return reply

    def own_address(self) -> str:
        """The address of this machine on its way to the server."""
        port = self._address.port or (443 if self._address.scheme == "https" else 80)
        with socket.create_connection((self._address.host, port), timeout=CONNECT_SECONDS) as connection:
            return str(connection.getsockname()[0])

    def attempt(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON reply to one request, without retries.

        Raises:
            Unavailable: if another attempt may succeed.
            ServerError: if it cannot.
        """
        try:
            response = self._client.request(method, path, json=body, extensions={"trace": self._connected})
        except httpx2.TransportError as error:
            raise Unavailable(self._without_key(f"{type(error).__name__} {error}".strip())) from error
        status = response.status_code
        if status >= 500 or status in (408, 429):
            raise Unavailable(f"{status}: {self._reason(response)}")
        if status >= 400:
            hint = f" Put its key into the environment variable {self._api_key_env}." if status == 401 else ""
            raise ServerError(f"{self.url}{path} answered {status}: {self._reason(response)}.{hint}", status=status)
        try:
            return response.json()
        except ValueError as error:
            raise Unavailable(f"a reply of {len(response.content)} bytes that is no JSON") from error

    def retry(self, call: Callable[[], T]) -> T:
        """The result of `call`, which is repeated while it raises Unavailable.

        Raises:
            ServerError: after `retries` repetitions.
        """
        waited = 0.0
        for attempt in range(self.retries + 1):
            try:
                return call()
            except Unavailable as error:
                problem = error
            if attempt < self.retries:
                pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * self._random.uniform(0.5, 1.0)
                with self._lock:
                    self._stats["retries"] += 1
                    self._stats["waited"] += pause
                waited += pause
                if self._stop.wait(pause):
                    break
        raise ServerError(
            f"{self.url} (`{self.group}.url`) gave no answer in {attempt + 1} attempts and {waited:.0f} s of waiting; "
            f"the last time: {problem}. Is it running? `{self.group}.retries` and `{self.group}.timeout` say how long "
            "it may be away."
        ) from problem

    def map(self, call: Callable[[R], T], items: Sequence[R]) -> list[T]:
        """The results of `call` for every item, `concurrency` at once; the first error ends all calls and is raised."""
        with ThreadPoolExecutor(min(self.concurrency, max(len(items), 1))) as pool:
            futures = [pool.submit(call, item) for item in items]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                failed = next((f for f in futures if f.done() and f.exception() is not None), None)
                return [f.result() for f in ([failed] if failed else futures)]
            except BaseException:
                for future in futures:
                    future.cancel()
                self._stop.set()  # wakes the calls that pause before a retry
                raise
            finally:
                wait([f for f in futures if not f.cancelled()])
                self._stop.clear()

    def wrong_reply(self, expected: str, got: object) -> ServerError:
        """The error for a reply of the wrong form."""
        return ServerError(f"Expected {self.url} to answer with {expected}, but got {repr(got)[:REASON]}.")

    def close(self) -> None:
        """Abort all requests and close the connections, upon which the server stops generating."""
        self._stop.set()
        for connection in list(self._sockets):
            with suppress(OSError):  # already closed
                connection.shutdown(socket.SHUT_RDWR)  # close() alone would not wake a thread that is reading
        self._client.close()

    def _connected(self, event: str, details: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.add(details["return_value"].get_extra_info("socket"))

    def _reason(self, response: httpx2.Response) -> str:
        try:
            message = response.json()
        except ValueError:
            message = response.text
        for key in ("error", "message", "detail"):
            if isinstance(message, dict) and key in message:
                message = message[key]
        return self._without_key(" ".join(str(message).split()).rstrip(".")[:REASON])

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text


def find_model(servers: Sequence[VLLMServer], model: str) -> tuple[VLLMServer, str, int]:
    """The server of `model` (a Hub name or a path), the model's name there, and its longest context in tokens.

    A server matches if its served name, or the path that it was started with, equals `model` or the end of its path.

    Raises:
        ConfigError: if no server does.
    """
    path = f"/{model.strip('/')}"
    offered: dict[str, list[str]] = {}
    for server in servers:
        reply = server.get("/v1/models")
        cards = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(cards, list) or not all(isinstance(c, dict) and "id" in c for c in cards):
            raise server.wrong_reply("a list of models", reply)
        context = next((int(c["max_model_len"]) for c in cards if c.get("max_model_len")), 0)  # adapters have none
        for card in cards:
            names = [f"/{str(name).strip('/')}" for name in (card["id"], card.get("root")) if name]
            if any(path.endswith(name) for name in names):
                return server, card["id"], context
        offered[server.url] = [c["id"] for c in cards]
    raise ConfigError.wrong(
        f"{servers[0].group}.url",
        expected=f"a server of {model!r} (vllm serve --served-model-name gives it its name)",
        got=offered,
    )
