"""Hand-written stand-ins that configs can name."""

from typing import Any

import torch

from opdlight.models import resolve_model
from opdlight.models.checkpoints import load_tokenizer
from opdlight.rollout import ScriptedEngine


class AnsweringEngine(ScriptedEngine):
    """Takes the arguments of VLLMEngine and answers every prompt with the same few tokens."""

    def __init__(self, model: str, max_model_len: int, **ignored: Any) -> None:
        tokenizer = load_tokenizer(resolve_model(model))
        ids = [*tokenizer("go to 1", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        super().__init__(lambda prompt: ids, max_model_len=max_model_len)


class RecordingEngine(AnsweringEngine):
    """Remembers the text of every prompt, for all its instances: configs make them."""

    prompts: list[str] = []  # noqa: RUF012

    def __init__(self, model: str, max_model_len: int, **ignored: Any) -> None:
        super().__init__(model, max_model_len)
        self.tokenizer = load_tokenizer(resolve_model(model))

    def add_request(self, request: Any) -> None:
        self.prompts.append(self.tokenizer.decode(request.prompt_ids))
        super().add_request(request)


class FailingEngine(AnsweringEngine):
    """Raises on the second rank when asked for a completion."""

    def add_request(self, request: Any) -> None:
        if torch.distributed.get_rank() == 1:
            raise RuntimeError("the engine of rank 1 has failed")
        super().add_request(request)
