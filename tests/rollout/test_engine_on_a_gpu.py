"""Where an engine starts, and what it has in memory when; on a fake of vLLM and of GPUs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opdlight.errors import ConfigError, EngineError
from opdlight.rollout import Request, Sampling
from opdlight.rollout.engines import vllm_start
from opdlight.rollout.engines.base import NO_WEIGHTS
from opdlight.rollout.engines.vllm import VLLMEngine
from opdlight.rollout.engines.vllm_start import engine_gpus
from tests.rollout.fake_vllm import FakeGPUs, FakeLLMEngine, install
from tests.tiny_models import tiny_llama, tiny_tokenizer

Started = tuple[VLLMEngine, FakeLLMEngine, FakeGPUs]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., Started]:
    def start(*, gpus: int = 8, current: int = 0, **arguments: Any) -> Started:
        found = FakeGPUs(monkeypatch, gpus, current)
        made = install(monkeypatch, found)
        engine = VLLMEngine(str(folder), max_model_len=64, **arguments)
        return engine, made[0], found

    return start


def request(name: str) -> Request:
    return Request(request_id=name, prompt_ids=[1, 2], max_tokens=3, sampling=Sampling())


def weights() -> dict[str, torch.Tensor]:
    return dict(tiny_llama(vocabulary_size=len(tiny_tokenizer())).state_dict())


@pytest.mark.parametrize("current", [0, 3, 7])
def test_each_rank_has_its_engine_on_its_own_gpu_and_finds_it_current_afterwards(start: Any, current: int) -> None:
    precision = torch.get_float32_matmul_precision()
    engine, fake, gpus = start(current=current)
    assert fake.arguments["device_ids"] == [current]
    assert fake.calls == [("start", current)]
    assert gpus.current == current
    assert {i: int(state) for i, state in gpus.random.items()} == {i: i for i in range(8)}  # the trainer's
    assert torch.get_float32_matmul_precision() == precision
    gpus.current = 1  # as in a thread, which begins on the first GPU
    engine.update_weights(weights().items(), 1)
    engine.add_request(request("a"))
    engine.step()
    assert [gpu for what, *_, gpu in fake.calls if what in ("reload", "step")] == [current, current]
    assert gpus.current == 1


def test_top_p_is_left_to_vllm_which_does_not_sort_on_a_gpu(start: Any) -> None:
    engine, fake, _ = start()
    engine.add_request(replace(request("a"), sampling=Sampling(top_p=0.9)))
    assert "logits_processors" not in fake.arguments
    assert (fake.sampling[0]["top_p"], fake.sampling[0]["extra_args"]) == (0.9, None)


def test_an_engine_that_starts_elsewhere_leaves_the_current_gpu_alone(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_start, "engine_gpus", lambda *ignored: [5])
    _, fake, gpus = start(current=2)
    assert fake.calls == [("start", 5)]
    assert gpus.current == 2


@pytest.mark.parametrize(
    ("current", "visible", "size", "expected"),
    [(0, 1, 1, [0]), (6, 8, 1, [6]), (0, 8, 4, [0, 1, 2, 3]), (6, 8, 4, [6, 7, 0, 1]), (0, 2, 2, [0, 1])],
)
def test_the_gpus_of_an_engine(current: int, visible: int, size: int, expected: list[int]) -> None:
    assert engine_gpus(current, visible, size) == expected


def test_more_gpus_than_there_are_or_several_beside_several_ranks_are_refused(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"engine\.tensor_parallel_size.*at most 2.*got 4"):
        start(gpus=2, tensor_parallel_size=4)
    monkeypatch.setattr(vllm_start, "world_size", lambda: 8)
    with pytest.raises(ConfigError, match=r"engine\.tensor_parallel_size.*engine=ray"):
        start(tensor_parallel_size=2)


def test_an_engine_of_several_processes_gets_the_weights_as_a_file(start: Any) -> None:
    engine, fake, _ = start(tensor_parallel_size=2)
    assert fake.arguments["device_ids"] == [0, 1]
    assert fake.arguments["tensor_parallel_size"] == 2
    sent = weights()
    engine.update_weights(sent.items(), 1)
    assert fake.weights is not None
    assert sorted(fake.weights) == sorted(sent)
    assert all(torch.equal(fake.weights[name], weight.bfloat16()) for name, weight in sent.items())
    assert engine.stats()["update_bytes"] == 2 * sum(weight.numel() for weight in sent.values())


def test_asleep_nothing_is_in_memory_and_the_cache_comes_after_the_weights(start: Any) -> None:
    engine, fake, _ = start()
    engine.sleep()
    engine.sleep()
    assert fake.mapped == set()
    assert engine.policy_version == NO_WEIGHTS
    for act in (lambda: engine.add_request(request("a")), lambda: engine.update_weights(weights().items(), 1)):
        with pytest.raises(EngineError, match="sle"):
            act()
    engine.wake()
    engine.wake()
    with pytest.raises(EngineError, match="no weights"):
        engine.add_request(request("a"))
    engine.update_weights(weights().items(), 4)
    assert engine.policy_version == 4
    engine.add_request(request("a"))
    with pytest.raises(EngineError, match="1 requests are unfinished"):
        engine.sleep()
    assert [what for what, *_ in fake.calls] == [
        "start", "sleep", "wake_up", "reload", "reset_prefix_cache", "wake_up", "add_request",
    ]  # fmt: skip
    assert ("reload", "weights", 0) in fake.calls  # without the cache, whose room the weights may need
    engine.close()


def test_an_engine_can_be_closed_in_its_sleep_and_refused_weights_leave_it_without_any(start: Any) -> None:
    engine, _, _ = start()
    engine.sleep()
    engine.wake()
    with pytest.raises(EngineError, match="no weight 'x'"):
        engine.update_weights({**weights(), "x": torch.ones(1)}.items(), 1)
    assert engine.policy_version == NO_WEIGHTS
    engine.sleep()
    engine.close()
    engine.close()


def test_memory_that_the_training_keeps_is_named_by_the_key_to_lower(start: Any) -> None:
    engine, fake, _ = start()
    engine.sleep()
    fake.full = True
    with pytest.raises(EngineError, match=r"memory of its weights: `engine\.gpu_memory_utilization`.*out of memory"):
        engine.wake()
    fake.full = False
    engine.wake()
    fake.full = True
    with pytest.raises(EngineError, match="memory of its kv_cache"):
        engine.update_weights(weights().items(), 1)
    assert engine.policy_version == NO_WEIGHTS
    engine.close()


def test_one_engine_of_a_process_sleeps(start: Any, folder: Path) -> None:
    student, fake, _ = start()
    assert fake.arguments["enable_sleep_mode"]
    teacher = VLLMEngine(str(folder), max_model_len=64)
    teacher.sleep()
    teacher.wake()
    assert teacher.policy_version == 0
    student.sleep()
    assert student.policy_version == NO_WEIGHTS


def test_an_engine_that_shall_not_sleep_keeps_its_weights(start: Any) -> None:
    engine, fake, _ = start(sleep=False)
    engine.sleep()
    engine.wake()
    assert not fake.arguments["enable_sleep_mode"]
    assert engine.policy_version == 0
    engine.add_request(request("a"))
