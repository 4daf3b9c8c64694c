"""vLLM's own weight transfer, real but for NCCL itself: its trainer side, its worker side, and a queue for a wire."""

import queue
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from opdlight.errors import EngineError
from opdlight.rollout import VLLMEngine
from opdlight.rollout.engines.nccl import NcclSender
from tests.end_to_end.test_vllm_engine import forward_logprobs, generate, start, student
from tests.tiny_models import save_tiny

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]
WIRE: "queue.Queue[tuple[str, torch.Tensor]]" = queue.Queue()


class Direct:
    """A client of one engine in this process."""

    def __init__(self, engine: VLLMEngine) -> None:
        self.engine, self.calls = engine, list[str]()

    def __getattr__(self, method: str) -> Any:
        def call(**arguments: Any) -> None:
            self.calls.append(method)
            self.engine.transfer(method, arguments)

        names = {"init_weight_transfer_engine": "init_info", "update_weights": "update_info"}
        return lambda *given: call(**dict(zip([names.get(method, "")], given, strict=False)))


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory, nccl_engine

    class Queued(nccl_engine.NCCLWeightTransferEngine):
        def init_transfer_engine(self, init_info: Any) -> None:
            self.world_size = init_info.world_size

        def update_weights(self, update_info: dict[str, Any]) -> None:
            info = self.parse_update_info(update_info)
            for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True):
                came, weight = WIRE.get(timeout=60)
                assert (came, str(weight.dtype), list(weight.shape)) == (name, f"torch.{dtype}", shape)
                self.model.load_weights([(came, weight)])

    monkeypatch.setitem(WeightTransferEngineFactory._registry, "queue", lambda: Queued)
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: info)
    monkeypatch.setattr(
        nccl_engine,
        "packed_nccl_broadcast_producer",
        lambda iterator, **ignored: [WIRE.put((name, weight.clone())) for name, weight in iterator],
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")


@pytest.fixture
def engine(wired: None, tmp_path: Path) -> Iterator[VLLMEngine]:
    engine = start(save_tiny(tmp_path, seed=0), weight_transfer="queue")
    yield engine
    engine.close()


def test_weights_that_vllm_has_transferred_are_the_policy(engine: VLLMEngine) -> None:
    client = Direct(engine)
    sender = NcclSender(client, gpus=1, address="localhost")
    for version, seed in ((1, 3), (2, 4)):
        model = student(seed)
        generate(engine, [[5, 6, 7]])  # the prefix cache holds what the old weights made of this prompt
        sender.send(dict(model.state_dict()), torch.float32)
        engine.adopt(version)
        (completion,) = generate(engine, [[5, 6, 7]])
        assert completion.policy_version == version
        expected = forward_logprobs(model, [5, 6, 7], completion.token_ids)
        assert torch.allclose(expected, torch.tensor(completion.logprobs), atol=1e-3)
    update = ["start_weight_update", "update_weights", "finish_weight_update"]
    assert client.calls == ["init_weight_transfer_engine", *update, *update]
    engine._running.add("busy")
    with pytest.raises(EngineError, match="1 requests are unfinished"):
        sender.send(dict(student(5).state_dict()), torch.float32)
    engine._running.clear()


def test_vllm_has_the_arguments_that_only_a_gpu_uses(wired: None) -> None:
    import vllm
    from vllm.v1.engine.llm_engine import LLMEngine

    assert {"device_ids", "enable_sleep_mode", "tensor_parallel_size", "distributed_executor_backend"} <= {
        field.name for field in fields(vllm.EngineArgs)
    }
    assert LLMEngine.sleep.__code__.co_varnames[:2] == ("self", "level")
    assert LLMEngine.wake_up.__code__.co_varnames[:2] == ("self", "tags")
