"""Hand-written stand-ins that configs can name."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from transformers.modeling_layers import GradientCheckpointingLayer

from opdlight.models import resolve_model
from opdlight.models.loading import load_tokenizer
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


class StudentOnlyEngine(AnsweringEngine):
    """Starts for the student and not for a teacher."""

    def __init__(self, model: str, max_model_len: int, **ignored: Any) -> None:
        if "teacher" in model:
            raise RuntimeError("no memory for another engine")
        super().__init__(model, max_model_len)

    def close(self) -> None:
        raise RuntimeError("the engine does not stop")


class TiredEngine(AnsweringEngine):
    """Answers until its weights have changed."""

    def add_request(self, request: Any) -> None:
        if self.policy_version > 0:
            raise RuntimeError("tired")
        super().add_request(request)


class FailingLogger(Logger):
    """Takes hyper-parameters, and raises ever after."""

    name = version = "failing"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        raise ConnectionError("the tracking server is away")

    def finalize(self, status: str) -> None:
        raise ConnectionError("the tracking server is away")


class CheckpointedLayers(L.Callback):
    """Counts how often layers are checkpointed, and ends a run in whose updates some layer was not."""

    def __init__(self) -> None:
        self.calls: list[int] = []  # by layer
        self.before = 0  # updates that a resumed run had made

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        layers = [m for m in pl_module.student.modules() if isinstance(m, GradientCheckpointingLayer)]
        self.calls = [0] * len(layers)
        for number, layer in enumerate(layers):
            layer._gradient_checkpointing_func = self.counted(number, layer._gradient_checkpointing_func)

    def counted(self, number: int, call: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **kwargs: Any) -> Any:
            self.calls[number] += torch.is_grad_enabled()
            return call(*args, **kwargs)

        return count

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.before = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        updates = trainer.global_step - self.before
        if not self.calls or min(self.calls) < updates:
            raise RuntimeError(f"{updates} updates, but the layers were checkpointed {self.calls} times")
