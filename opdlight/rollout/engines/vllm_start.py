"""How vLLM is started inside another process: imported late, on the right GPUs, and with the process's state restored.

A trainer's rank and its engine share a process, so whatever vLLM changes there while it starts (random states, number
of threads, precision of matrix products, process-group variables) is put back.
"""

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from opdlight.errors import ConfigError, MissingDependencyError
from opdlight.system.distributed import world_size

_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process: weights need not be sent
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding threads to cores would bind those of the trainer, too
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
TOP_P = "opdlight.rollout.engines.vllm_top_p:TopP"
_GROUP_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def import_vllm() -> Any:
    """The package vllm, set to run in this process.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # vLLM logs before it has set the level
    try:
        import vllm
        import vllm.platforms
        import vllm.sampling_params
        import vllm.triton_utils
    except ImportError as error:
        raise MissingDependencyError.extra("The vLLM engine", "gpu" if torch.cuda.is_available() else "cpu") from error
    return vllm


def leave_out_ranks() -> None:
    """Let vLLM on a CPU say -1 for the rank of a token among the most probable ones, which nobody here reads.

    It counts with a function that it compiles when log-probs are first asked for: seconds of the first rollout, and a
    C++ compiler.
    """
    from vllm.v1.sample import sampler

    sampler.batched_count_greater_than = lambda logprobs, _: logprobs.new_full((len(logprobs),), -1, dtype=torch.long)


def connect_nccl(client: Any, source: Any, *, address: str, port: int, world_size: int) -> Any:
    """VLLM's trainer side of a weight transfer over NCCL, connected to the engines that `client` calls.

    Args:
        client: see `nccl.Client`.
        source: see `nccl.Source`.
        address: of this machine, as the engines see it.
        port: a free one, at which they meet.
        world_size: 1 + the number of all engines' GPUs.
    """
    import_vllm()
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

    info = NCCLTrainerInitInfo(master_address=address, master_port=port, world_size=world_size, rank=0)
    return NCCLTrainerWeightTransferEngine.trainer_init(info, client=client, source=source)


def check_tensor_parallel(tensor_parallel_size: int) -> None:
    """An engine of several GPUs (on a CPU: of several worker processes) needs a trainer of one process.

    Raises:
        ConfigError: naming `engine.tensor_parallel_size`, if there are several.
    """
    if tensor_parallel_size > 1 and world_size() > 1:
        raise ConfigError.wrong(
            "engine.tensor_parallel_size",
            expected="1 beside several trainer processes, each of which has one GPU; engine=ray gives an engine "
            "several GPUs of its own (engine.engine.tensor_parallel_size)",
            got=tensor_parallel_size,
        )


def engine_gpus(current: int, visible: int, tensor_parallel_size: int) -> list[int]:
    """The GPUs of an engine: that of its process, and for tensor parallelism those that follow it.

    Args:
        current: index of the GPU that this process uses, among the visible ones.
        visible: number of GPUs that this process sees (CUDA_VISIBLE_DEVICES).
        tensor_parallel_size: number of GPUs of the engine.

    Returns:
        Indices among the visible GPUs, as vLLM's `device_ids` takes them.

    Raises:
        ConfigError: naming `engine.tensor_parallel_size`, if there are fewer.
    """
    if tensor_parallel_size > visible:
        expected = f"at most {visible}, the number of GPUs that the engine's process sees"
        raise ConfigError.wrong("engine.tensor_parallel_size", expected=expected, got=tensor_parallel_size)
    return [(current + i) % visible for i in range(tensor_parallel_size)]


@contextmanager
def process_state_restored() -> Iterator[None]:
    """Restore what starting vLLM changes in this process; `VLLMEngine` does so for the current GPU."""
    group = {name: os.environ.pop(name, None) for name in _GROUP_VARIABLES}  # the engine has its own group
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    streams = random.getstate(), np.random.get_state()
    precision = torch.get_float32_matmul_precision()
    devices = list(range(torch.cuda.device_count()))  # vLLM seeds the generators of all
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads = set_num_threads  # vLLM's CPU worker replaces it by a function that does nothing
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        random.setstate(streams[0])
        np.random.set_state(streams[1])
        for name, value in group.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def refusal(model: str, max_model_len: int, error: Exception) -> str:
    """The error message for a model that vLLM refuses, with the config key to change."""
    details = error.errors() if hasattr(error, "errors") else []  # pydantic's text repeats all arguments
    reason = " ".join(str(details[0]["msg"] if details else error or type(error).__name__).split())
    key = "engine"
    if "max_model_len" in reason:
        key = "engine.max_model_len"
    elif "memory" in reason.lower():
        key = "engine.gpu_memory_utilization" if torch.cuda.is_available() else "engine.kv_cache_gib"
    return f"Cannot start the engine for {model!r} with max_model_len={max_model_len}: see `{key}`. vLLM says: {reason}"
