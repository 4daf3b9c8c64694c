"""vLLM inside the trainer's process: continuous batching, a prefix cache, and weights that follow the student.

This is the only file that imports vllm, and only when an engine starts. Trainer and engine share the process, so what
starting vLLM changes in it (number of threads, random states, process-group variables) is restored.
"""

import gc
import logging
import os
import random
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from opdlight.bounds import Bounds, PositiveFloat, PositiveInt, Seed
from opdlight.errors import ConfigError, EngineError, MissingDependencyError
from opdlight.models.loading import engine_folder
from opdlight.rollout.engines.base import Completion, Request
from opdlight.rollout.engines.model_folder import checkpoint_shapes, complete_weights, stop_token_ids
from opdlight.system.distributed import full_tensor

_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process: weights need not be sent
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding threads to cores would bind those of the trainer, too
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
_GROUP_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_COUNTERS = ("requests", "prompt_tokens", "cached_tokens", "generated_tokens", "steps", "seconds", "update_seconds")
_alive: set[int] = set()  # ids of the engines of this process, which share vLLM's process group


class VLLMEngine:
    """An in-process vLLM engine, on the device that the installed vLLM was built for.

    Log-probs are raw: of the full distribution at temperature 1, before temperature and top-p. Completions stop at the
    end-of-sequence ids of the tokenizer and of the generation config, and at `sampling.stop`; the stop token is their
    last token.

    Args:
        model: folder or Hub name of a Hugging Face causal LM with its tokenizer, or of a LoRA adapter, which is merged.
        dtype: of weights, activations and cache; weights of another one are converted.
        max_model_len: longest context in tokens.
        max_num_seqs: most requests that are decoded at once.
        gpu_memory_utilization: share of the GPU's memory that the engine may fill (GPU only).
        kv_cache_gib: size of the key/value cache in GiB (CPU only).
        threads: CPU threads while the engine runs; None: as many as the trainer.
        seed: of the random stream for requests without a seed.
        trust_remote_code: run the code that the model brings with it (`auto_map`).

    Raises:
        ConfigError: if vLLM cannot serve the model with these arguments.
        MissingDependencyError: if vLLM is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        max_model_len: PositiveInt,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        max_num_seqs: PositiveInt = 128,
        gpu_memory_utilization: Annotated[float, Bounds(above=0, at_most=1)] = 0.4,
        kv_cache_gib: PositiveFloat = 1.0,
        threads: PositiveInt | None = None,
        seed: Seed = 0,
        trust_remote_code: bool = False,
    ) -> None:
        self.policy_version = 0
        self.max_model_len = max_model_len
        self.threads = threads
        self._running: set[str] = set()
        self._stats = dict.fromkeys(_COUNTERS, 0.0)
        self._owns_group = bool(_alive) or not torch.distributed.is_initialized()
        arguments: dict[str, Any] = {
            "dtype": dtype,
            "seed": seed,
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max(2048, max_model_len, max_num_seqs),
            "gpu_memory_utilization": gpu_memory_utilization,
            "enable_prefix_caching": True,
            "logprobs_mode": "raw_logprobs",
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # do not take sampling parameters from the model's folder
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "trust_remote_code": trust_remote_code,
        }
        trust = {"trust_remote_code": trust_remote_code}
        start = time.perf_counter()
        with engine_folder(model, dtype, **trust) as folder, _process_state_restored(), self._engine_threads():
            self._stop_ids, self._shapes = stop_token_ids(folder, **trust), checkpoint_shapes(folder, **trust)
            self._vllm = _import_vllm()
            if self._vllm.platforms.current_platform.is_cpu():
                arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": int(kv_cache_gib * 2**30)}
                # with chunked prefill vLLM resets the random generator of a request, which is not possible on a CPU
                arguments["enable_chunked_prefill"] = False
            try:
                self._engine: Any = self._vllm.LLMEngine.from_engine_args(self._vllm.EngineArgs(folder, **arguments))
            except Exception as error:  # the class depends on what vLLM refuses
                raise ConfigError(_refusal(model, max_model_len, error)) from error
        self._vocabulary_size = self._engine.model_config.get_vocab_size()
        self._stats["start_seconds"] = time.perf_counter() - start
        _alive.add(id(self))

    def add_request(self, request: Request) -> None:
        """Queue a request."""
        request.check(self.max_model_len)
        if request.request_id in self._running:
            raise EngineError(f"Request {request.request_id} is already running.")
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < self._vocabulary_size:
            raise EngineError(
                f"Expected the prompt ids of request {request.request_id} to be in [0, {self._vocabulary_size}), but "
                f"got {min(request.prompt_ids)} … {max(request.prompt_ids)}: is the tokenizer the model's own?"
            )
        parameters = self._vllm.SamplingParams(
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop_token_ids=request.sampling.stop_ids(self._stop_ids),
            logprobs=0,  # of the sampled token only
            flat_logprobs=True,
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(request.request_id, {"prompt_token_ids": request.prompt_ids}, parameters)
        self._running.add(request.request_id)

    def step(self) -> list[Completion]:
        """Do one decoding step for all running requests and return the completions that it finished."""
        start = time.perf_counter()
        with self._engine_threads():
            outputs = self._engine.step()
        completions = [self._completion(output) for output in outputs if output.finished]
        self._stats["steps"] += 1
        self._stats["seconds"] += time.perf_counter() - start
        return completions

    def _completion(self, output: Any) -> Completion:
        result = output.outputs[0]
        self._running.discard(output.request_id)
        ids, logprobs = list(result.token_ids), list(result.logprobs.logprobs)
        if result.finish_reason not in ("stop", "length") or len(ids) != len(logprobs):
            raise EngineError(
                f"Expected request {output.request_id} to end by stop or length with a log-prob per token, but vLLM "
                f"answered {result.finish_reason!r} with {len(ids)} tokens and {len(logprobs)} log-probs."
            )
        self._stats["requests"] += 1
        self._stats["prompt_tokens"] += len(output.prompt_token_ids)
        self._stats["cached_tokens"] += output.num_cached_tokens or 0
        self._stats["generated_tokens"] += len(ids)
        return Completion(
            request_id=output.request_id,
            token_ids=ids,
            logprobs=logprobs,
            finish_reason=result.finish_reason,
            policy_version=self.policy_version,
        )

    def has_unfinished(self) -> bool:
        """True while a request is queued or running."""
        return bool(self._running)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Load weights, named as in a checkpoint, and clear the prefix cache.

        Raises:
            EngineError: while requests are unfinished, or if names or shapes differ from the model's; nothing changes
                then.
        """
        if self._running:
            raise EngineError(f"Weights cannot change while {len(self._running)} requests are unfinished.")
        start = time.perf_counter()
        # a tied weight is passed under every name: vLLM on a CPU has a packed copy of the head, updated only by name
        named = complete_weights(weights, self._shapes)
        with torch.no_grad(), self._engine_threads():
            self._engine.collective_rpc(
                "reload_weights",
                # one by one: of a sharded student only one weight at a time is gathered
                kwargs={
                    "weights_iterator": ((n, full_tensor(w)) for n, w in named.items()),
                    "is_checkpoint_format": True,
                },
            )
        if not self._engine.reset_prefix_cache():
            raise EngineError(
                "vLLM kept its prefix cache after a weight update: the next rollout would mix two policies."
            )
        self.policy_version = policy_version
        self._stats["update_seconds"] += time.perf_counter() - start

    def stats(self) -> dict[str, float]:
        """Totals since the start: requests, tokens (prompt, cached of them, generated), steps, seconds."""
        return dict(self._stats)

    def close(self) -> None:
        """Free the model and its cache; the last engine also destroys the process group unless the trainer made it."""
        if id(self) not in _alive:
            return
        _alive.discard(id(self))
        client = self._engine.engine_core
        if _alive or not self._owns_group:
            client._finalizer.detach()  # its full shutdown would destroy a process group that is still used
            client.engine_core.model_executor.shutdown()
            client.engine_core.scheduler.shutdown()
            gc.unfreeze()  # vLLM has excluded all objects from garbage collection when it started
        else:
            client.shutdown()
        del client, self._engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def _engine_threads(self) -> Iterator[None]:
        """In the block, torch uses the engine's number of threads."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _refusal(model: str, max_model_len: int, error: Exception) -> str:
    """The error message for a model that vLLM refuses, with the config key to change."""
    details = error.errors() if hasattr(error, "errors") else []  # pydantic's text repeats all arguments
    reason = " ".join(str(details[0]["msg"] if details else error or type(error).__name__).split())
    key = "engine"
    if "max_model_len" in reason:
        key = "engine.max_model_len"
    elif "memory" in reason.lower():
        key = "engine.gpu_memory_utilization" if torch.cuda.is_available() else "engine.kv_cache_gib"
    return f"Cannot start the engine for {model!r} with max_model_len={max_model_len}: see `{key}`. vLLM says: {reason}"


def _import_vllm() -> Any:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # vLLM logs before it has set the level
    try:
        import vllm
        import vllm.platforms
        import vllm.sampling_params
    except ImportError as error:
        raise MissingDependencyError.extra("The vLLM engine", "gpu" if torch.cuda.is_available() else "cpu") from error
    return vllm


@contextmanager
def _process_state_restored() -> Iterator[None]:
    """Restore what starting vLLM changes in this process."""
    group = {name: os.environ.pop(name, None) for name in _GROUP_VARIABLES}  # the engine has its own group
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    streams = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads = set_num_threads  # vLLM's CPU worker replaces it by a function that does nothing
        torch.set_num_threads(threads)
        random.setstate(streams[0])
        np.random.set_state(streams[1])
        for name, value in group.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
