"""A served student and its requests, for the tests of `VLLMServerEngine`."""

from typing import Any

import torch
from transformers import PreTrainedModel

from opdlight.rollout import Completion, Request, Sampling, VLLMServerEngine
from tests.tiny_models import tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
STOP = 2  # <|im_end|>
PROMPTS = [[5, 6, 7 + i] for i in range(8)]


def student(seed: int) -> PreTrainedModel:
    return tiny_llama(seed, vocabulary_size=len(TOKENIZER), spread=0.1)


def add(engine: VLLMServerEngine, number: int, **changed: Any) -> None:
    how: Any = {"prompt_ids": PROMPTS[number], "max_tokens": 12, "sampling": Sampling(), "seed": 100 + number}
    engine.add_request(Request(request_id=str(number), **{**how, **changed}))


def generate(engine: VLLMServerEngine, **changed: Any) -> list[Completion]:
    for number in range(len(PROMPTS)):
        add(engine, number, **changed)
    return finish(engine)


def finish(engine: VLLMServerEngine) -> list[Completion]:
    found: list[Completion] = []
    while engine.has_unfinished():
        found += engine.step()
    assert sorted(c.request_id for c in found) == [str(i) for i in range(len(found))]  # each once
    return sorted(found, key=lambda c: c.request_id)


def gap(model: PreTrainedModel, completions: list[Completion]) -> float:
    """Largest |reported log-prob − forward log-prob|."""
    worst = 0.0
    for prompt, c in zip(PROMPTS, completions, strict=True):
        with torch.no_grad():
            rows = model(torch.tensor([[*prompt, *c.token_ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = rows.gather(1, torch.tensor(c.token_ids)[:, None])[:, 0]
        worst = max(worst, float((expected - torch.tensor(c.logprobs)).abs().max()))
    return worst
