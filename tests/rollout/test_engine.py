"""Checks of requests, the scripted engine, and stop tokens and weights of a model folder."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from opdlight.errors import ConfigError, EngineError, MissingDependencyError
from opdlight.rollout.engines.base import Request, Sampling
from opdlight.rollout.engines.model_folder import checkpoint_shapes, complete_weights, stop_token_ids
from opdlight.rollout.engines.scripted import ScriptedEngine
from opdlight.rollout.engines.vllm import VLLMEngine
from tests.tiny_models import save_tiny, tiny_llama, tiny_tokenizer


def request(name: str = "a", **changed: Any) -> Request:
    return Request(**{"request_id": name, "prompt_ids": [1, 2], "max_tokens": 3, "sampling": Sampling(), **changed})


@pytest.mark.parametrize("key", ["temperature", "top_p"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), 1.5])
def test_sampling_refuses_what_is_no_policy(key: str, value: float) -> None:
    if (key, value) == ("temperature", 1.5):
        assert Sampling(temperature=value).temperature == value
        return
    with pytest.raises(ConfigError, match=rf"sampling\.{key}"):
        Sampling(**{key: value})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt_ids": []}, "prompt_ids"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 9}, r"max_model_len` = 10.*2 tokens"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        ScriptedEngine(lambda prompt: [5], max_model_len=10).add_request(request(**changed))


def test_scripted_engine_answers_after_its_steps_and_records_events() -> None:
    engine = ScriptedEngine(lambda prompt: [*prompt, 9], steps=lambda r: 2 if r.request_id == "slow" else 1)
    engine.add_request(request("slow"))
    engine.add_request(request("fast", max_tokens=2))
    with pytest.raises(EngineError, match="already running"):
        engine.add_request(request("slow"))
    with pytest.raises(EngineError, match="2 requests are unfinished"):
        engine.update_weights([], 1)
    (fast,) = engine.step()
    assert (fast.request_id, fast.token_ids, fast.finish_reason) == ("fast", [1, 2], "length")
    assert engine.has_unfinished()
    (slow,) = engine.step()
    assert (slow.request_id, slow.token_ids, slow.finish_reason) == ("slow", [1, 2, 9], "stop")
    assert slow.logprobs == [0.0, 0.0, 0.0]
    engine.update_weights([("w", torch.ones(1))], 4)
    assert engine.policy_version == 4
    assert list(engine.weights) == ["w"]
    engine.close()
    assert engine.events == [
        ("add", "slow"), ("add", "fast"), ("finish", "fast"), ("finish", "slow"), ("update", 4), ("close",),
    ]  # fmt: skip
    assert engine.stats() == {"requests": 2.0, "steps": 2.0}


def test_stop_tokens_come_from_tokenizer_and_generation_config(tmp_path: Path) -> None:
    model = tiny_llama(vocabulary_size=320)
    tokenizer = tiny_tokenizer()
    model.generation_config.eos_token_id = [0, 5]
    model.save_pretrained(tmp_path / "both")
    tokenizer.save_pretrained(tmp_path / "both")
    assert stop_token_ids(str(tmp_path / "both")) == [0, 2, 5]
    (tmp_path / "both" / "generation_config.json").unlink()
    assert stop_token_ids(str(tmp_path / "both")) == [2]
    tokenizer.eos_token = None
    model.save_pretrained(tmp_path / "none")
    tokenizer.save_pretrained(tmp_path / "none")
    (tmp_path / "none" / "generation_config.json").unlink()
    with pytest.raises(EngineError, match="no end-of-sequence token"):
        stop_token_ids(str(tmp_path / "none"))


@pytest.mark.parametrize("tied", [True, False])
def test_weights_must_be_the_whole_model_in_its_shapes(tmp_path: Path, tied: bool) -> None:
    shapes = checkpoint_shapes(str(save_tiny(tmp_path, tied=tied)))
    weights = dict(tiny_llama(vocabulary_size=len(tiny_tokenizer()), tied=tied).state_dict())
    assert complete_weights(weights.items(), shapes).keys() == weights.keys() == shapes.keys()
    headless = {n: w for n, w in weights.items() if n != "lm_head.weight"}
    if tied:  # the embedding is the head: it is sent under both names
        whole = complete_weights(headless.items(), shapes)
        assert torch.equal(whole["lm_head.weight"], weights["model.embed_tokens.weight"])
    else:
        with pytest.raises(EngineError, match=r"1 are missing.*lm_head\.weight"):
            complete_weights(headless.items(), shapes)
    with pytest.raises(EngineError, match=r"no weight 'base\.layer'"):
        complete_weights((weights | {"base.layer": torch.ones(1)}).items(), shapes)
    with pytest.raises(EngineError, match=r"model\.norm\.weight.*\(64,\).*\(65,\)"):
        complete_weights((weights | {"model.norm.weight": torch.ones(65)}).items(), shapes)


def test_missing_vllm_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependencyError, match=r"opdlight\[(cpu|gpu)\]"):
        VLLMEngine(str(folder), max_model_len=64)
