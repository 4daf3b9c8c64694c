"""A hand-written stand-in for `vllm serve`: a tiny model answers, and faults can be put in its way."""

import base64
import io
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

Fault = Callable[[BaseHTTPRequestHandler], bool]  # True: it has answered (or hung up), and that was all


def status(code: int, message: str = "overloaded") -> Fault:
    """Answer with an error."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        _answer(handler, code, {"error": {"message": message}})
        return True

    return fault


def slow(seconds: float) -> Fault:
    """Answer later."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        time.sleep(seconds)
        return False

    return fault


def cut(handler: BaseHTTPRequestHandler) -> bool:
    """Break off in the middle of the reply."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
    return True


def half_json(handler: BaseHTTPRequestHandler) -> bool:
    """A whole reply of half a document."""
    handler.send_response(200)
    handler.send_header("Content-Length", "13")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    return True


def hang_up(handler: BaseHTTPRequestHandler) -> bool:
    """No reply at all."""
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


class FakeServer:
    """Serves `model` under `name`, as vLLM 0.32 does in development mode with --enable-scale-out.

    Args:
        names_ids: scores ids that it is sent (vLLM's second model runner); without, it refuses.
        faults: of the next requests for tokens, in order.
        spoil: changes every reply with tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        name: str = "tiny",
        *,
        names_ids: bool = True,
        max_logprobs: int = -1,
        context: int = 256,
        key: str = "",
    ) -> None:
        self.first = {n: w.clone() for n, w in model.state_dict().items()}
        self.model, self.tokenizer, self.name, self.key = model, tokenizer, name, key
        self.root = name  # the path it was started with
        self.names_ids, self.max_logprobs, self.context = names_ids, max_logprobs, context
        self.faults: deque[Fault] = deque()
        self.spoil: Callable[[dict[str, Any]], Any] = lambda reply: None
        self.version, self.most_at_once = "default", 0
        self.dev, self.processed, self.loads, self.after_load = True, False, 0, lambda: None
        self._now, self._lock = 0, threading.Lock()
        self.asked: list[tuple[str, Any]] = []
        self.transfer: dict[str, str] | None = None  # as `vllm serve --weight-transfer-config` sets it
        self.wire: dict[str, torch.Tensor] = {}  # what comes over NCCL
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, at the same port as before."""
        outer, self._away = self, False

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each reply waits 40 ms

            def do_GET(self) -> None:
                outer._handle(self, None)

            def do_POST(self) -> None:
                outer._handle(self, json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"null"))

            def log_message(self, *ignored: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # the client has given up

        self._http = Server(("127.0.0.1", self._port), Handler)
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Be away."""
        self._away = True  # for the connections that stay open
        self._http.shutdown()
        self._http.server_close()

    def restart(self) -> None:
        """Forget everything that was loaded."""
        with self._lock:
            self.model.load_state_dict(self.first)
            self.version = "default"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ignored: Any) -> None:
        self.stop()

    def _handle(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        path = handler.path
        if self._away:
            hang_up(handler)
            return
        self.asked.append((path, body))
        sent = handler.headers.get("Authorization")
        if self.key and path.startswith(("/v1", "/inference")) and sent != f"Bearer {self.key}":
            _answer(handler, 401, {"error": f"Unauthorized: {sent}"})  # a careless server repeats the key
            return
        if path == "/inference/v1/generate":
            with self._lock:
                self._now += 1
                self.most_at_once = max(self.most_at_once, self._now)
                fault = self.faults.popleft() if self.faults else None
            try:
                if fault is None or not fault(handler):
                    _answer(handler, *self._generate(body))
            finally:
                with self._lock:
                    self._now -= 1
        elif path == "/v1/models":
            cards = [{"id": self.name, "root": self.root, "max_model_len": self.context}]
            _answer(handler, 200, {"data": cards})
        elif path == "/tokenize":
            ids = self.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
            _answer(handler, 200, {"tokens": ids})
        elif not self.dev:
            _answer(handler, 404, {"detail": "Not Found"})
        elif path == "/update_weight_version":
            self.version = body["new_version"]
            _answer(handler, 200, {"success": True})
        elif path == "/collective_rpc":
            self.loads += 1
            try:
                with self._lock:
                    self.model.load_state_dict(load_file(f"{body['kwargs']['weights_path']}/model.safetensors"))
            except RuntimeError as error:
                _answer(handler, 500, {"error": {"message": f"Call to collective_rpc method failed: {error}"}})
                return
            self.after_load()
            _answer(handler, 200, {"results": [None]})
        elif path == "/reset_prefix_cache":
            _answer(handler, 200, {"success": True})
        elif path == "/server_info?config_format=json":
            config = {"model_config": {"dtype": str(self.model.dtype)}, "weight_transfer_config": self.transfer}
            _answer(handler, 200, {"vllm_config": config})
        elif path == "/get_world_size":
            _answer(handler, 200, {"world_size": 2})
        elif self.transfer and path.endswith(("_weight_transfer_engine", "_weight_update", "/update_weights")):
            if path == "/update_weights":
                with self._lock:
                    self.model.load_state_dict({name: self.wire[name] for name in body["update_info"]["names"]})
                self.after_load()
            _answer(handler, 200, {"message": "done"})
        elif path == "/weight_info":
            _answer(handler, 200, {"weight_version": self.version})

    def _generate(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        how, ids = body["sampling_params"], body["token_ids"]
        for asked in (how.get("prompt_logprobs"), len((how.get("prompt_logprob_token_ids") or [[]])[0])):
            if self.max_logprobs >= 0 and not 0 <= (asked or 0) <= self.max_logprobs:
                return 400, {"error": {"message": f"Requested {asked}, greater than max allowed: {self.max_logprobs}"}}
        reply: dict[str, Any] = {"model": self.name, "prompt_logprobs": None, "prompt_token_id_logprobs": None}
        with self._lock, torch.no_grad():
            version = self.version
            if "prompt_logprobs" in how:
                rows = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
                reply["prompt_logprobs"] = [None, *(_told(row, how, ids[i + 1]) for i, row in enumerate(rows[:-1]))]
            if (named := how.get("prompt_logprob_token_ids")) is not None:
                if not self.names_ids:
                    return 400, {"error": {"message": "prompt_logprob_token_ids requires the V2 model runner"}}
                start = how.get("prompt_logprob_start", 0)
                assert len(named) == len(ids) - 1 - start
                array = torch.tensor(named)
                scores = rows[start:-1].gather(1, array.clamp(min=0)).masked_fill(array < 0, -torch.inf)
                reply["prompt_token_id_logprobs"] = to_npy(scores)
            reply["choices"] = [self._sample(ids, how) | {"weight_versions": [{"version": version}]}]
        self.spoil(reply)
        return 200, reply

    def _sample(self, ids: list[int], how: dict[str, Any]) -> dict[str, Any]:
        """Tokens at the temperature; a function of weights, prompt and seed."""
        generator = torch.Generator().manual_seed(how.get("seed") or 0)
        found, content, reason = [], [], "length"
        while len(found) < how["max_tokens"] and reason == "length":
            logits = self.model(torch.tensor([[*ids, *found]])).logits[0, -1]
            sampled = (logits / (how.get("temperature") or 1.0)).log_softmax(-1)
            token = int(torch.multinomial(sampled.exp(), 1, generator=generator))
            found.append(token)
            logprob = float((sampled if self.processed else logits.log_softmax(-1))[token])
            content.append({"token_id": token, "logprob": logprob})
            if token in how.get("stop_token_ids", ()):
                reason = "stop"
        return {"token_ids": found, "finish_reason": reason, "logprobs": {"content": content}}


def _told(row: torch.Tensor, how: dict[str, Any], token: int) -> dict[str, Any]:
    k = len(row) if how["prompt_logprobs"] == -1 else how["prompt_logprobs"]
    ids = [token, *row.topk(k).indices.tolist()]
    return {str(i): {"logprob": float(row[i]), "rank": 1, "decoded_token": None} for i in ids}


def from_npy(text: str) -> torch.Tensor:
    return torch.from_numpy(np.load(io.BytesIO(base64.b64decode(text))))


def to_npy(array: torch.Tensor) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array.numpy(), allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode()


def _answer(handler: BaseHTTPRequestHandler, code: int, body: Any) -> None:
    data = json.dumps(body).encode()
    handler.send_response(code)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
