"""An engine for actors: it computes its answers, takes its time, and dies or refuses when told."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from opdlight.errors import EngineError
from opdlight.rollout.engine import Completion, Request, ScriptedEngine

DEADLY, REFUSED = 666, 667  # tokens of a prompt


class SlowEngine(ScriptedEngine):
    """A completion follows from prompt, seed and weights; its log-probs are the number of the process.

    Args:
        model: ignored.
        seconds: of one decoding step.
        trap: while this file exists, an engine does not start: its process ends, or it raises what the file says.
    """

    def __init__(self, model: str, *, seconds: float = 0.0, trap: Path | None = None) -> None:
        if trap and trap.exists():
            if text := trap.read_text():
                raise EngineError(text)
            os._exit(1)
        super().__init__(lambda prompt: prompt, steps=lambda r: r.max_tokens, max_model_len=256)
        self.seconds = seconds

    def add_request(self, request: Request) -> None:
        if REFUSED in request.prompt_ids:
            raise EngineError(f"Request {request.request_id} is refused.")
        super().add_request(request)

    def step(self) -> list[Completion]:
        time.sleep(self.seconds)
        if any(DEADLY in request.prompt_ids for request, _ in self._running.values()):
            os._exit(1)
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
        named = {name: weight.clone() for name, weight in weights}
        if "unknown" in named:
            raise EngineError("The engine's model has no weight 'unknown'.")
        super().update_weights(named.items(), policy_version)
