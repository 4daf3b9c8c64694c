"""What `VLLMServerEngine` refuses: malformed replies, and servers that cannot serve the student."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from opdlight.errors import ConfigError, EngineError, OpdError, ServerError
from opdlight.rollout import VLLMServerEngine
from tests.fake_server import FakeServer
from tests.rollout.served import TOKENIZER, add, finish
from tests.tiny_models import tiny_llama


def choice(**changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda reply: reply["choices"][0].update(changed)


def each_logprob(value: object) -> Callable[[dict[str, Any]], None]:
    return lambda reply: [c.update(logprob=value) for c in reply["choices"][0]["logprobs"]["content"]]


def another_end(reply: dict[str, Any]) -> None:
    now = reply["choices"][0]["finish_reason"]
    reply["choices"][0]["finish_reason"] = {"stop": "length", "length": "stop"}[now]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (choice(token_ids=[]), "tokens with a log-prob each"),
        (lambda reply: reply["choices"][0]["token_ids"].pop(), "tokens with a log-prob each"),
        (lambda reply: reply["choices"][0]["logprobs"]["content"].pop(), "tokens with a log-prob each"),
        (choice(logprobs=None), "tokens with a log-prob each"),
        (lambda reply: reply["choices"][0]["logprobs"]["content"][0].pop("token_id"), "a log-prob per token"),
        (each_logprob("x"), "a log-prob per token"),
        (each_logprob(0.5), "finite log-probs"),
        (each_logprob(float("nan")), "finite log-probs"),
        (each_logprob(-9999.0), "finite log-probs"),
        (another_end, r"an end by one of the stop tokens \[2\] or by the length 12"),
        (choice(finish_reason="error"), "an end by"),
        (choice(weight_versions=None), "the weight versions of a completion"),
        (lambda reply: reply.update(choices=[]), "one choice"),
    ],
)
def test_a_spoilt_reply_is_no_completion(
    spoil: Callable[[dict[str, Any]], Any], message: str, fake: FakeServer, start: Callable[..., VLLMServerEngine]
) -> None:
    engine = start()
    fake.spoil = spoil
    add(engine, 0)
    with pytest.raises(ServerError, match=message):
        finish(engine)


def no_development(fake: FakeServer) -> None:
    fake.dev = False


def processed(fake: FakeServer) -> None:
    fake.processed = True


def small_context(fake: FakeServer) -> None:
    fake.context = 63


def other_architecture(fake: FakeServer) -> None:
    fake.model = tiny_llama(0, vocabulary_size=len(TOKENIZER), hidden=32)


def deaf(fake: FakeServer) -> None:
    """It says that it has loaded weights, and has not."""
    fake.after_load = lambda: fake.model.load_state_dict(fake.first)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (no_development, EngineError, "VLLM_SERVER_DEV_MODE=1"),
        (processed, EngineError, "--logprobs-mode raw_logprobs"),
        (
            small_context,
            ConfigError,
            r"`engine.max_model_len` .* at most 63 \(vllm serve --max-model-len\), but got 64",
        ),
        (other_architecture, EngineError, "does it see this folder under the same path"),
        (deaf, EngineError, "nats from the model's in the mean"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_at_the_start(
    change: Callable[[FakeServer], None],
    error: type[OpdError],
    message: str,
    fake: FakeServer,
    start: Callable[..., VLLMServerEngine],
) -> None:
    change(fake)
    with pytest.raises(error, match=message):
        start()


def test_several_processes_are_refused(start: Callable[..., VLLMServerEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"`trainer.devices` to be 1 beside engine=vllm_server, but got 2"):
        start()


def test_the_dtype_of_a_server_is_asked(fake: FakeServer, start: Callable[..., VLLMServerEngine]) -> None:
    engine = start()
    assert engine.dtype == "float32"
    fake.model.bfloat16()
    assert engine.dtype == "bfloat16"
