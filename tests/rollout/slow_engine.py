"""An engine for actors that computes its completions, is slow, and dies or refuses on request."""

import os
import time
from collections.abc import Iterable

from torch import Tensor

from opdlight.errors import EngineError
from opdlight.rollout.engines.base import Completion, Request
from opdlight.rollout.engines.scripted import ScriptedEngine

DEADLY, REFUSED = 9998, 9999  # tokens of a prompt


class Died(BaseException):
    """Ends a process that is only played."""


class SlowEngine(ScriptedEngine):
    """A token a step; the completion follows from prompt, seed and weights, its log-probs are the process's number."""

    def __init__(self, model: str, *, seconds: float = 0.0) -> None:
        super().__init__(lambda prompt: prompt, steps=lambda request: request.max_tokens, max_model_len=4096)
        if model == "refused":
            raise EngineError("The model is refused.")
        self.seconds = seconds

    def add_request(self, request: Request) -> None:
        """Queue a request."""
        if REFUSED in request.prompt_ids:
            raise EngineError(f"Request {request.request_id} is refused.")
        super().add_request(request)

    def step(self) -> list[Completion]:
        """Take a while."""
        time.sleep(self.seconds)
        if any(DEADLY in request.prompt_ids for request, _ in self._running.values()):
            raise Died
        return super().step()

    def _complete(self, request: Request) -> Completion:
        start = sum(request.prompt_ids) + 7 * (request.seed or 0) + sum(int(w.sum()) for w in self.weights.values())
        return Completion(
            request_id=request.request_id,
            token_ids=[(start + i) % 300 for i in range(request.max_tokens)],
            logprobs=[float(os.getpid())] * request.max_tokens,
            finish_reason="length",
            policy_version=self.policy_version,
        )

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Keep a copy: the object store's memory is not the engine's."""
        named = {name: weight.clone() for name, weight in weights}
        if "unknown" in named:
            raise EngineError("The engine's model has no weight 'unknown'.")
        super().update_weights(named.items(), policy_version)
