"""A fake of vLLM on GPUs, and of torch's view of them: records where an engine starts, and what is in its memory."""

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from opdlight.rollout.engines import vllm as engine_module
from opdlight.rollout.engines import vllm_start

MAPPED = {"weights", "kv_cache"}


class FakeGPUs:
    """`torch.cuda` of a machine with so many GPUs: which is the current one, and the random state of each."""

    def __init__(self, patch: pytest.MonkeyPatch, count: int, current: int) -> None:
        self.chosen: list[int] = []  # by `set_device`
        self.current, self.random = current, {i: torch.tensor([i]) for i in range(count)}
        for name, found in {
            "is_available": lambda: count > 0,
            "device_count": lambda: count,
            "current_device": lambda: self.current,
            "set_device": self.choose,
            "device": self.block,
            "get_rng_state": lambda device: self.random[device],
            "set_rng_state": lambda state, device: self.random.update({device: state}),
            "empty_cache": lambda: None,
        }.items():
            patch.setattr(torch.cuda, name, found)

    def choose(self, device: int) -> None:
        self.current = device
        self.chosen.append(device)

    def block(self, device: int) -> Any:
        gpus, before = self, self.current

        class Block:
            def __enter__(self) -> None:
                gpus.current = device

            def __exit__(self, *error: object) -> None:
                gpus.current = before

        return Block()


class FakeLLMEngine:
    """What `VLLMEngine` uses of `vllm.LLMEngine`; weights and cache are mapped or not, as in vLLM's sleep mode."""

    def __init__(self, gpus: FakeGPUs, arguments: dict[str, Any]) -> None:
        self.gpus, self.arguments = gpus, arguments
        self.calls: list[tuple[Any, ...]] = []  # (what, GPU that was the current one then)
        self.sampling: list[dict[str, Any]] = []  # of each request
        self.mapped = set(MAPPED)
        self.weights: dict[str, torch.Tensor] | None = {}  # None: lost
        self.scheduling, self.full = True, False
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 64)
        core = SimpleNamespace(
            model_executor=SimpleNamespace(shutdown=lambda: None), scheduler=SimpleNamespace(shutdown=lambda: None)
        )
        self.engine_core = SimpleNamespace(
            shutdown=lambda: self.record("shutdown"), engine_core=core, _finalizer=SimpleNamespace(detach=lambda: None)
        )
        gpus.choose(arguments["device_ids"][0])  # as its worker does
        gpus.random = {i: torch.tensor([99]) for i in gpus.random}
        torch.set_float32_matmul_precision("medium")
        self.record("start")

    def record(self, *what: Any) -> None:
        self.calls.append((*what, self.gpus.current))

    def sleep(self, level: int) -> None:
        assert self.arguments["enable_sleep_mode"] and level == 2
        self.mapped, self.weights, self.scheduling = set(), None, False
        self.record("sleep")

    def wake_up(self, tags: list[str]) -> None:
        assert not self.mapped & set(tags)
        if self.full:
            raise RuntimeError("CUDA Error: out of memory")
        self.mapped |= set(tags)
        self.scheduling = self.mapped == MAPPED
        self.record("wake_up", *tags)

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights" and "weights" in self.mapped
        if "weights_iterator" in kwargs:
            self.weights = dict(kwargs["weights_iterator"])
        else:
            from safetensors.torch import load_file

            self.weights = load_file(f"{kwargs['weights_path']}/model.safetensors")
        self.record("reload", *sorted(self.mapped))

    def reset_prefix_cache(self) -> bool:
        self.record("reset_prefix_cache")
        return True

    def add_request(self, name: str, prompt: Any, parameters: Any) -> None:
        assert self.weights is not None and self.scheduling, "vLLM would answer with noise, or never"
        self.sampling.append(parameters)
        self.record("add_request", name)

    def step(self) -> list[Any]:
        self.record("step")
        return []


def install(patch: pytest.MonkeyPatch, gpus: FakeGPUs) -> list[FakeLLMEngine]:
    """Let `VLLMEngine` find this vLLM; returns the list of its engines."""
    made: list[FakeLLMEngine] = []

    def from_engine_args(arguments: Any) -> FakeLLMEngine:
        made.append(FakeLLMEngine(gpus, arguments.found))
        return made[-1]

    vllm: Any = ModuleType("vllm")
    vllm.platforms = SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: False))
    vllm.EngineArgs = lambda folder, **found: SimpleNamespace(found=found)
    vllm.LLMEngine = SimpleNamespace(from_engine_args=from_engine_args)
    vllm.SamplingParams = lambda **found: found
    vllm.sampling_params = SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY=0))
    patch.setattr(vllm_start, "import_vllm", lambda: vllm)
    patch.setattr(engine_module, "_alive", set())
    patch.setattr(engine_module, "_sleepers", set())
    return made
