"""vLLM inside the trainer's process: continuous batching, a prefix cache, and weights that follow the student."""

import gc
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from opdlight.bounds import Bounds, PositiveFloat, PositiveInt, Seed
from opdlight.errors import ConfigError, EngineError
from opdlight.models.loading import engine_folder
from opdlight.rollout.engines import vllm_start
from opdlight.rollout.engines.base import NO_WEIGHTS, Completion, Request
from opdlight.rollout.engines.model_folder import checkpoint_shapes, complete_weights, stop_token_ids
from opdlight.system.distributed import full_tensor

log = logging.getLogger(__name__)

_COUNTERS = (
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "generated_tokens",
    "steps",
    "seconds",
    "update_bytes",
    "update_seconds",
)
_alive: set[int] = set()  # ids of the engines of this process, which share vLLM's process group
_sleepers: set[int] = set()  # ids of those that were ever started with sleep mode


class VLLMEngine:
    """An in-process vLLM engine, on the device that the installed vLLM was built for; a GPU is that of the trainer.

    Log-probs are raw: of the full distribution at temperature 1, before temperature and top-p. Completions stop at the
    end-of-sequence ids of the tokenizer and of the generation config, and at `sampling.stop`; the stop token is their
    last token.

    On a GPU `sleep` frees the memory of weights and cache, which the trainer then has (vLLM's sleep mode, level 2): the
    weights are dropped and must be loaded again after `wake`. vLLM allows that for one engine a process, so later ones,
    such as those that measure the teachers, stay awake.

    Args:
        model: folder or Hub name of a Hugging Face causal LM with its tokenizer, or of a LoRA adapter, which is merged.
        dtype: of weights, activations and cache; weights of another one are converted.
        max_model_len: longest context in tokens.
        max_num_seqs: most requests that are decoded at once.
        gpu_memory_utilization: share of the GPU's memory that the engine may fill while it is awake (GPU only).
        sleep: free the engine's memory between rollouts (GPU only).
        tensor_parallel_size: number of GPUs that divide the model between them, beginning with the trainer's, each with
            a process of its own; on a CPU the number of processes. With several the trainer must be one process.
        weight_transfer: how weights may come besides by `update_weights`, in vLLM's own way; set by `RayEngine`.
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
        sleep: bool = True,
        tensor_parallel_size: PositiveInt = 1,
        weight_transfer: Literal["nccl"] | None = None,
        kv_cache_gib: PositiveFloat = 1.0,
        threads: PositiveInt | None = None,
        seed: Seed = 0,
        trust_remote_code: bool = False,
    ) -> None:
        vllm_start.check_tensor_parallel(tensor_parallel_size)
        self.policy_version = 0
        self.max_model_len = max_model_len
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.threads = threads
        self._processes = tensor_parallel_size
        self._gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
        self.shares_cores = self._gpu is None
        self._can_sleep, self._asleep = False, False
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
            "tensor_parallel_size": tensor_parallel_size,
        }
        trust = {"trust_remote_code": trust_remote_code}
        start = time.perf_counter()
        with engine_folder(model, dtype, **trust) as folder, vllm_start.process_state_restored(), self._engine_state():
            self._stop_ids, self.shapes = stop_token_ids(folder, **trust), checkpoint_shapes(folder, **trust)
            self._vllm = vllm_start.import_vllm()
            if self._vllm.platforms.current_platform.is_cpu():
                vllm_start.leave_out_ranks()
                arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": int(kv_cache_gib * 2**30)}
                # only whole blocks of a prompt are cached: the least that vLLM's attention takes, not its usual 128
                arguments["block_size"] = 32
                # with chunked prefill vLLM resets the random generator of a request, which is not possible on a CPU
                arguments["enable_chunked_prefill"] = False
                if not self._vllm.triton_utils.HAS_TRITON:  # with it, vLLM itself finds the nucleus without a sort
                    arguments["logits_processors"] = [vllm_start.TOP_P]
            elif self._gpu is not None:
                gpus = vllm_start.engine_gpus(self._gpu, torch.cuda.device_count(), tensor_parallel_size)
                self._can_sleep = sleep and not _sleepers
                arguments |= {"device_ids": gpus, "enable_sleep_mode": self._can_sleep}
            if weight_transfer is not None:
                arguments["weight_transfer_config"] = {"backend": weight_transfer}
            if tensor_parallel_size > 1:
                arguments["distributed_executor_backend"] = "mp"  # also in an actor of Ray, where vLLM would start more
            try:
                self._engine: Any = self._vllm.LLMEngine.from_engine_args(self._vllm.EngineArgs(folder, **arguments))
            except Exception as error:  # the class depends on what vLLM refuses
                raise ConfigError(vllm_start.refusal(model, max_model_len, error)) from error
        self._own_top_p = "logits_processors" in arguments
        self._vocabulary_size = self._engine.model_config.get_vocab_size()
        self._stats["start_seconds"] = time.perf_counter() - start
        _alive.add(id(self))
        if self._can_sleep:
            _sleepers.add(id(self))
        elif sleep and _sleepers:
            log.info("The engine for %s stays awake: vLLM lets one engine of a process sleep.", model)

    def add_request(self, request: Request) -> None:
        """Queue a request."""
        request.check(self.max_model_len)
        if self._asleep or self.policy_version == NO_WEIGHTS:
            raise EngineError(f"Request {request.request_id} came while the engine slept or had no weights.")
        if request.request_id in self._running:
            raise EngineError(f"Request {request.request_id} is already running.")
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < self._vocabulary_size:
            raise EngineError(
                f"Expected the prompt ids of request {request.request_id} to be in [0, {self._vocabulary_size}), but "
                f"got {min(request.prompt_ids)} … {max(request.prompt_ids)}: is the tokenizer the model's own?"
            )
        top_p = request.sampling.top_p
        ours = self._own_top_p and top_p < 1
        parameters = self._vllm.SamplingParams(
            temperature=request.sampling.temperature,
            top_p=1.0 if ours else top_p,
            extra_args={"top_p": top_p} if ours else None,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop_token_ids=request.sampling.stop_ids(self._stop_ids),
            logprobs=0,  # of the sampled token only
            flat_logprobs=True,
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # vLLM need not copy what is made for this request only
        )
        prompt = {"type": "token", "prompt_token_ids": request.prompt_ids}  # `vllm.inputs.TokensInput`
        self._engine.add_request(request.request_id, prompt, parameters)
        self._running.add(request.request_id)

    def step(self) -> list[Completion]:
        """Do one decoding step for all running requests and return the completions that it finished."""
        start = time.perf_counter()
        with self._engine_state():
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
        if self._asleep:
            raise EngineError("Weights cannot be loaded while the engine sleeps: wake it first.")
        start = time.perf_counter()
        # a tied weight is passed under every name: vLLM on a CPU has a packed copy of the head, updated only by name
        named = complete_weights(weights, self.shapes)
        with torch.no_grad(), self._engine_state():
            self._load(named)
        self.adopt(policy_version)
        self._stats["update_seconds"] += time.perf_counter() - start

    def transfer(self, method: str, arguments: Mapping[str, Any]) -> None:
        """Do a part of vLLM's own weight transfer (see `nccl.Client`); `adopt` must follow the last one."""
        if self._running:
            raise EngineError(f"Weights cannot change while {len(self._running)} requests are unfinished.")
        with torch.no_grad(), self._engine_state():
            self._engine.collective_rpc(method, kwargs=dict(arguments))

    def adopt(self, policy_version: int) -> None:
        """Weights have been loaded: forget the cache of the old ones, and be of this version."""
        with self._engine_state():
            if not self._engine.reset_prefix_cache():
                raise EngineError(
                    "vLLM kept its prefix cache after a weight update: the next rollout would mix two policies."
                )
            if self.policy_version == NO_WEIGHTS:
                self._take_back("kv_cache")  # only now: while they are loaded, weights need room twice
        self.policy_version = policy_version

    def _load(self, named: Mapping[str, Tensor]) -> None:
        """Let vLLM load weights; of a sharded student only one at a time is gathered."""
        if self._processes == 1:
            whole = ((name, self._whole(weight)) for name, weight in named.items())
            how: dict[str, Any] = {"weights_iterator": whole, "is_checkpoint_format": True}
            self._engine.collective_rpc("reload_weights", kwargs=how)
            return
        # vLLM's workers are processes of their own: a generator cannot be sent to them, a file can be read by all
        with tempfile.TemporaryDirectory(prefix="opdlight-weights-") as folder:
            copies = {name: self._whole(w).to("cpu", copy=True).contiguous() for name, w in named.items()}
            save_file(copies, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})

    def _whole(self, weight: Tensor) -> Tensor:
        whole = full_tensor(weight, self.dtype)
        self._stats["update_bytes"] += whole.numel() * whole.element_size()
        return whole

    def sleep(self) -> None:
        """On a GPU: free the memory of weights and cache; the weights are lost, those of the student come after `wake`.

        Raises:
            EngineError: while requests are unfinished.
        """
        if self._running:
            raise EngineError(f"The engine cannot sleep while {len(self._running)} requests are unfinished.")
        if not self._can_sleep or self._asleep:
            return
        with self._engine_state():
            self._engine.sleep(level=2)
        self._asleep, self.policy_version = True, NO_WEIGHTS

    def wake(self) -> None:
        """Take the memory of the weights back; that of the cache follows when `update_weights` has loaded them."""
        if not self._asleep:
            return
        with self._engine_state():
            self._take_back("weights")
        self._asleep = False

    def _take_back(self, part: Literal["weights", "kv_cache"]) -> None:
        try:
            self._engine.wake_up(tags=[part])
        except RuntimeError as error:
            raise EngineError(
                f"The engine cannot take back the memory of its {part}: `engine.gpu_memory_utilization` asks for more "
                f"than training leaves free between two steps. vLLM says: {error}"
            ) from error

    def stats(self) -> dict[str, float]:
        """Totals since the start: requests, tokens (prompt, cached of them, generated), seconds, bytes of weights."""
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
    def _engine_state(self) -> Iterator[None]:
        """In the block, torch uses the engine's number of threads and its GPU, which a thread has to be told."""
        before = torch.get_num_threads()
        with ExitStack() as stack:
            torch.set_num_threads(self.threads or before)
            stack.callback(torch.set_num_threads, before)
            if self._gpu is not None:
                stack.enter_context(torch.cuda.device(self._gpu))
            yield
