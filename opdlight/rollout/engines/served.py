"""A student behind `vllm serve`: requests over HTTP, weights over NCCL or through a folder that both sides see.

The server labels every completion with the version of the weights that sampled it, and only completions of the version
`policy_version` are returned. A server that was restarted has lost weights and version: it is sent the weights again,
and requests that it answered without them are repeated with the same seeds.
"""

import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from opdlight.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from opdlight.errors import ConfigError, EngineError, ServerError
from opdlight.models.loading import engine_folder
from opdlight.rollout.engines.base import Completion, Request, Sampling
from opdlight.rollout.engines.model_folder import named_weights, stop_token_ids
from opdlight.rollout.engines.served_weights import ServedWeights
from opdlight.system.vllm_http import VLLMServer

STEP_SECONDS = 0.05  # longest time that a step waits for a completion; between steps environments are served
UNLABELLED = "default"  # vLLM's weight version when it has just started
HOT, CHECKED = 2.0, 32  # the check of log-probs: temperature (the highest that vLLM allows) and number of tokens
DIFFERENT = 0.2  # nats; a larger mean difference fails the check. The rounding of bfloat16 stays far below
_COUNTERS = (
    "requests",
    "prompt_tokens",
    "generated_tokens",
    "steps",
    "seconds",
    "update_bytes",
    "update_seconds",
    "restarts",
    "resent",
)


class VLLMServerEngine:
    """An engine that uses a server, `VLLM_SERVER_DEV_MODE=1 vllm serve --enable-scale-out`, which nobody else may use.

    Log-probs and stop tokens are as those of `VLLMEngine`.

    Args:
        model: folder or Hub name of the student as it starts; of a LoRA adapter, which is merged.
        max_model_len: longest context in tokens; the server's may be longer.
        url: address of the server.
        weights_folder: folder for the weights; the server must see it under the same path. Not used if the server was
            started with `--weight-transfer-config '{"backend": "nccl"}'` and this process has a GPU: then the weights
            go from GPU to GPU, no copy is kept, and a restart of the server ends the run.
        concurrency: most requests that run at the same time.
        timeout: seconds until an attempt counts as failed; a completion or a reload must not take longer.
        retries: further attempts after one that failed; the pauses before 8 of them take about two minutes.
        api_key_env: environment variable with the key of `vllm serve --api-key`.
        trust_remote_code: run the code that the model brings with it (`auto_map`).

    Raises:
        ServerError: if the server cannot be reached or refuses a request.
        EngineError: if it cannot serve this student.
        ConfigError: if its context is too short, or beside several trainer processes.
    """

    def __init__(
        self,
        model: str,
        *,
        max_model_len: PositiveInt,
        url: str,
        weights_folder: str,
        concurrency: PositiveInt = 128,
        timeout: PositiveFloat = 600.0,
        retries: NonNegativeInt = 8,
        api_key_env: str = "VLLM_API_KEY",
        trust_remote_code: bool = False,
    ) -> None:
        if torch.distributed.is_initialized() and (processes := torch.distributed.get_world_size()) > 1:
            raise ConfigError.wrong("trainer.devices", expected="1 beside engine=vllm_server", got=processes)
        self._server = VLLMServer(
            url, "engine", concurrency=concurrency, timeout=timeout, retries=retries, api_key_env=api_key_env
        )
        self.policy_version, self.max_model_len, self.shares_cores = 0, max_model_len, False
        self._in_flight: dict[Future[dict[str, Any]], Request] = {}
        self._waiting: list[Request] = []  # to be sent when the server has its weights again
        self._restarts = 0  # of the server since the last completion
        self._stats = dict.fromkeys(_COUNTERS, 0.0)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="engine")
        start = time.perf_counter()
        self._model = self._check_model()
        trust = {"trust_remote_code": trust_remote_code}
        with engine_folder(model, "float32", **trust) as source:
            self._stop_ids = stop_token_ids(source, **trust)
            dtype, nccl = getattr(torch, self.dtype), self._takes_nccl() and torch.cuda.is_available()
            self._weights = ServedWeights(self._server, source, weights_folder, dtype=dtype, nccl=nccl, **trust)
            first = AutoModelForCausalLM.from_pretrained(source, dtype="auto", **trust).eval()
        self._weights.update(named_weights(first), 0)  # the server may hold those of an earlier run
        self._check_logprobs(first)
        self._stats["start_seconds"] = time.perf_counter() - start

    def add_request(self, request: Request) -> None:
        """Queue a request."""
        request.check(self.max_model_len)
        if any(request.request_id == r.request_id for r in (*self._in_flight.values(), *self._waiting)):
            raise EngineError(f"Request {request.request_id} is already running.")
        if self._waiting:
            self._waiting.append(request)
        else:
            self._send(request)

    def _send(self, request: Request) -> None:
        self._in_flight[self._threads.submit(self._generate, request)] = request

    def _generate(self, request: Request) -> dict[str, Any]:
        return self._server.generate(
            request.prompt_ids,
            self._model,
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop_token_ids=request.sampling.stop_ids(self._stop_ids),
            logprobs=0,  # of the sampled token only
        )

    def step(self) -> list[Completion]:
        """Wait up to `STEP_SECONDS` for a completion and return all that have arrived."""
        start = time.perf_counter()
        if self._waiting and not self._in_flight:
            self._restore()
        done, _ = wait(self._in_flight, timeout=STEP_SECONDS, return_when=FIRST_COMPLETED)
        completions = []
        for future in done:
            request = self._in_flight.pop(future)
            completion = self._completion(request, future.result())
            if completion is None:
                self._waiting.append(request)
                self._stats["resent"] += 1
                continue
            completions.append(completion)
            self._stats["requests"] += 1
            self._stats["prompt_tokens"] += len(request.prompt_ids)
            self._stats["generated_tokens"] += len(completion.token_ids)
        if self._waiting:  # do not send what the server would answer without weights
            self._waiting += [self._in_flight.pop(future) for future in list(self._in_flight) if future.cancel()]
        self._restarts = 0 if completions else self._restarts
        self._stats["steps"] += 1
        self._stats["seconds"] += time.perf_counter() - start
        return completions

    def _restore(self) -> None:
        """After a restart of the server: send it the weights, then the requests that wait."""
        self._restarts += 1
        if self._restarts > self._server.retries + 1:
            raise EngineError(f"{self._server.url} has lost its weights {self._restarts} times without one completion.")
        self._weights.push()
        self._stats["restarts"] += 1
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            self._send(request)

    def _completion(self, request: Request, reply: dict[str, Any]) -> Completion | None:
        """The checked completion; None if the server has answered without its weights or aborted the request."""
        choice = reply["choices"][0]
        spans = choice.get("weight_versions")
        if not isinstance(spans, list) or not all(isinstance(s, dict) for s in spans):
            raise self._server.wrong_reply("the weight versions of a completion (vLLM 0.32 or later)", spans)
        versions = {span.get("version") for span in spans}
        if choice.get("finish_reason") == "abort" or UNLABELLED in versions:
            return None
        if versions != {self._weights.label}:
            raise EngineError(
                f"{self._server.url} sampled with the weights {sorted(map(str, versions))}, but this run has published "
                f"{self._weights.label}: another run publishes to the same server. Give each run its own."
            )
        ids, logprobs = self._tokens(request, choice)
        return Completion(
            request_id=request.request_id,
            token_ids=ids,
            logprobs=logprobs,
            finish_reason=choice["finish_reason"],
            policy_version=self.policy_version,
        )

    def _tokens(self, request: Request, choice: dict[str, Any]) -> tuple[list[int], list[float]]:
        """Token ids [C] and log-probs [C] of a reply, which must match, be finite, and agree with the finish reason."""
        ids, reported = choice.get("token_ids"), choice.get("logprobs")
        content = reported.get("content") if isinstance(reported, dict) else None
        try:
            tokens = [(int(c["token_id"]), float(c["logprob"])) for c in content or ()]
        except (KeyError, TypeError, ValueError) as error:
            raise self._server.wrong_reply("a log-prob per token", content) from error
        logprobs = [logprob for _, logprob in tokens]
        if not ids or [i for i, _ in tokens] != ids or len(ids) > request.max_tokens:
            raise self._server.wrong_reply(f"1 to {request.max_tokens} tokens with a log-prob each", choice)
        if not all(-9000 < logprob <= 1e-3 for logprob in logprobs):  # vLLM replaces −∞ and NaN by −9999
            raise self._server.wrong_reply("finite log-probs ≤ 0", logprobs)
        stops = request.sampling.stop_ids(self._stop_ids)
        ended = {"stop": ids[-1] in stops, "length": len(ids) == request.max_tokens}
        if not ended.get(choice.get("finish_reason", ""), False):
            raise self._server.wrong_reply(
                f"an end by one of the stop tokens {stops} or by the length {request.max_tokens}",
                (choice.get("finish_reason"), len(ids), ids[-1]),
            )
        return ids, logprobs

    def has_unfinished(self) -> bool:
        """True while a request is queued or running."""
        return bool(self._in_flight or self._waiting)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Send the weights, named as in a checkpoint, let the server load them, and check that it has.

        Raises:
            EngineError: while requests are unfinished, or if names or shapes differ from the model's; nothing changes
                then.
        """
        if self.has_unfinished():
            count = len(self._in_flight) + len(self._waiting)
            raise EngineError(f"Weights cannot change while {count} requests are unfinished.")
        start = time.perf_counter()
        self._stats["update_bytes"] += self._weights.update(weights, policy_version)
        self.policy_version = policy_version
        self._stats["update_seconds"] += time.perf_counter() - start

    def sleep(self) -> None:
        """Nothing: the server's GPUs are not the trainer's."""

    def wake(self) -> None:
        """Nothing."""

    def _check_model(self) -> str:
        """The name of the served model; ConfigError if its context is shorter than `max_model_len`."""
        reply = self._server.get("/v1/models")
        try:
            name, context = str(reply["data"][0]["id"]), int(reply["data"][0]["max_model_len"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._server.wrong_reply("a list of models", reply) from error
        if self.max_model_len > context:
            expected = f"at most {context} (vllm serve --max-model-len)"
            raise ConfigError.wrong("engine.max_model_len", expected=expected, got=self.max_model_len)
        return name

    @torch.no_grad()
    def _check_logprobs(self, model: PreTrainedModel) -> None:
        """Compare the server's log-probs of sampled tokens with the model's: they must be raw and of these weights."""
        sampling = Sampling(temperature=HOT)
        request = Request(request_id="check", prompt_ids=[0, 1, 2], max_tokens=CHECKED, sampling=sampling)
        how = {"temperature": HOT, "max_tokens": CHECKED, "seed": 0, "ignore_eos": True, "logprobs": 0}
        completion = self._completion(request, self._server.generate(request.prompt_ids, self._model, **how))
        if completion is None:
            raise EngineError(f"{self._server.url} was restarted while the engine started. Start the run again.")
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        logprobs = model(ids).logits[0, len(request.prompt_ids) - 1 : -1].float().log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        difference = float((expected - torch.tensor(completion.logprobs)).abs().mean())
        if not difference <= DIFFERENT:
            raise EngineError(
                f"{self._server.url} reports log-probs that are {difference:.2f} nats from the model's in the mean. "
                "Start it with --logprobs-mode raw_logprobs and with the model's own config."
            )

    @property
    def dtype(self) -> str:
        """The dtype of the server's weights, such as bfloat16."""
        config = self._config()
        try:
            return str(config["model_config"]["dtype"]).removeprefix("torch.")
        except (KeyError, TypeError) as error:
            raise self._server.wrong_reply("its dtype (vllm_config.model_config.dtype)", config) from error

    def _takes_nccl(self) -> bool:
        """Was the server started with `--weight-transfer-config '{"backend": "nccl"}'`?"""
        transfer = self._config().get("weight_transfer_config")
        return isinstance(transfer, dict) and transfer.get("backend") == "nccl"

    def _config(self) -> dict[str, Any]:
        """What the server says of itself, which it does in development mode only."""
        try:
            reply = self._server.get("/server_info?config_format=json")
        except ServerError as error:
            if error.status != 404:
                raise
            raise EngineError(
                f"{error} Start the server with VLLM_SERVER_DEV_MODE=1: otherwise it cannot load weights."
            ) from error
        config = reply.get("vllm_config") if isinstance(reply, dict) else None
        if not isinstance(config, dict):
            raise self._server.wrong_reply("its configuration (vllm_config)", reply)
        return config

    def stats(self) -> dict[str, float]:
        """Totals since the start: requests, tokens, steps, seconds, restarts of the server and repeated requests."""
        return {**self._stats, **self._server.stats()}

    def close(self) -> None:
        """Abort all requests and delete the written weights; the server keeps running."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._weights.remove()
        self._server.close()
