"""A vLLM server over HTTP: retries with backoff, errors in one sentence, the API key from the environment.

Nothing here imports vllm: a machine that trains beside a server needs none.
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
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds between two attempts: doubled each time
CONNECT_SECONDS = 10.0
KEEP_SECONDS = 2.0  # an idle connection is closed before the server's side (5 s) may close it under a request
REASON = 400  # characters of a server's message that an error repeats


class Unavailable(Exception):
    """An attempt failed in a way that may pass: the server is away, slow, overloaded, or its reply broke off."""


class VLLMServer:
    """One server and how patiently it is asked. Threads may share it.

    Args:
        url: where it listens, such as http://127.0.0.1:8000.
        group: config group that holds these arguments, for errors.
        concurrency: requests that are under way at once.
        timeout: seconds until an attempt counts as failed.
        retries: further attempts after one that failed; pauses of 0.5, 1, 2 … 60 seconds lie between them.
        api_key_env: environment variable that holds the key of `vllm serve --api-key`; unset, none is sent.
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
        self._random = random.Random()  # jitter: no seeded stream may move when a server is slow
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._stats = {"retries": 0.0, "waited": 0.0}

    def stats(self) -> dict[str, float]:
        """Since the start: attempts that were repeated, seconds of the pauses before them (summed over requests)."""
        return dict(self._stats)

    def get(self, path: str) -> Any:
        """The JSON at `path`; raises ServerError."""
        return self.patiently(lambda: self.once("GET", path))

    def post(self, path: str, body: Any) -> Any:
        """The JSON that answers `body`; raises ServerError."""
        return self.patiently(lambda: self.once("POST", path, body))

    def generate(self, token_ids: list[int], model: str, **sampling: Any) -> dict[str, Any]:
        """Token ids in, token ids out; needs `--enable-scale-out`."""
        sampling = {"detokenize": False, **sampling}
        body = {"model": model, "token_ids": token_ids, "sampling_params": sampling}
        reply = self.post("/inference/v1/generate", body)
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise self.wrong_reply("one choice", choices)
        return reply

    def once(self, method: str, path: str, body: Any = None) -> Any:
        """One attempt.

        Raises:
            Unavailable: if another attempt makes sense. ServerError: if not.
        """
        try:
            response = self._client.request(method, path, json=body, extensions={"trace": self._connected})
        except httpx2.TransportError as error:
            raise Unavailable(self._safe(f"{type(error).__name__} {error}".strip())) from error
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

    def patiently(self, call: Callable[[], T]) -> T:
        """The result of `call`, repeated while it raises Unavailable.

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

    def each(self, call: Callable[[R], T], items: Sequence[R]) -> list[T]:
        """`call` on every item, `concurrency` at once; the first error ends them all."""
        with ThreadPoolExecutor(min(self.concurrency, max(len(items), 1))) as pool:
            futures = [pool.submit(call, item) for item in items]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                failed = next((f for f in futures if f.done() and f.exception() is not None), None)
                return [f.result() for f in ([failed] if failed else futures)]
            except BaseException:
                for future in futures:
                    future.cancel()
                self._stop.set()  # those that wait for a server that is away
                raise
            finally:
                wait([f for f in futures if not f.cancelled()])
                self._stop.clear()

    def wrong_reply(self, expected: str, got: object) -> ServerError:
        """The error for a reply that nothing can be trained on."""
        return ServerError(f"Expected {self.url} to answer with {expected}, but got {repr(got)[:REASON]}.")

    def close(self) -> None:
        """Give up whatever still waits; the server aborts what nobody waits for."""
        self._stop.set()
        for connection in list(self._sockets):
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)  # closing alone would not wake a thread that reads
        self._client.close()

    def _connected(self, event: str, told: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.add(told["return_value"].get_extra_info("socket"))

    def _reason(self, response: httpx2.Response) -> str:
        try:
            said = response.json()
        except ValueError:
            said = response.text
        for key in ("error", "message", "detail"):
            if isinstance(said, dict) and key in said:
                said = said[key]
        return self._safe(" ".join(str(said).split()).rstrip(".")[:REASON])

    def _safe(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text


def find_model(servers: Sequence[VLLMServer], model: str) -> tuple[VLLMServer, str, int]:
    """The server that serves `model` (a Hub name or a path), the name it gives it, and its longest context in tokens.

    A served name counts if it is the model's or the end of its path; so does the path that a server was started with.

    Raises:
        ConfigError: if none does.
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
