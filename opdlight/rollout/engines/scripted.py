"""An engine for tests, whose completions come from a function."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from opdlight.errors import EngineError
from opdlight.rollout.engines.base import Completion, Request


class ScriptedEngine:
    """An engine for tests: a function gives the completions, and `events` records the order of the calls.

    Args:
        answer: prompt ids → token ids, or (token ids, log-probs). They end at the first token in `sampling.stop`; the
            finish reason is "length" if they are cut at `max_tokens`, else "stop".
        steps: request → number of decoding steps that it takes (at least 1).
        max_model_len: longest context in tokens.

    `events` holds ("add", request id), ("finish", request id), ("update", version), ("sleep",), ("wake",) and
    ("close",). It keeps its weights in sleep.
    """

    def __init__(
        self,
        answer: Callable[[list[int]], Sequence[int] | tuple[Sequence[int], Sequence[float]]],
        *,
        steps: Callable[[Request], int] = lambda request: 1,
        max_model_len: int = 4096,
    ) -> None:
        self.answer, self.steps, self.max_model_len = answer, steps, max_model_len
        self.policy_version, self.shares_cores = 0, False
        self.events: list[tuple[object, ...]] = []
        self.requests: list[Request] = []  # every request ever added
        self.weights: dict[str, Tensor] = {}  # of the last update
        self.steps_taken = 0
        self._asleep = False
        self._running: dict[str, tuple[Request, int]] = {}  # request id → request, steps left

    def add_request(self, request: Request) -> None:
        """Queue a request."""
        request.check(self.max_model_len)
        if self._asleep:
            raise EngineError(f"Request {request.request_id} came while the engine slept.")
        if request.request_id in self._running:
            raise EngineError(f"Request {request.request_id} is already running.")
        self.events.append(("add", request.request_id))
        self.requests.append(request)
        self._running[request.request_id] = (request, self.steps(request))

    def step(self) -> list[Completion]:
        """Count every running request down by one."""
        self.steps_taken += 1
        finished = []
        for request_id, (request, left) in list(self._running.items()):
            if left > 1:
                self._running[request_id] = (request, left - 1)
                continue
            del self._running[request_id]
            self.events.append(("finish", request_id))
            finished.append(self._complete(request))
        return finished

    def _complete(self, request: Request) -> Completion:
        answer = self.answer(request.prompt_ids)
        ids, logprobs = answer if isinstance(answer, tuple) else (answer, [0.0] * len(answer))
        ids = ids[: next((n for n, i in enumerate(ids, 1) if i in request.sampling.stop), len(ids))]
        return Completion(
            request_id=request.request_id,
            token_ids=list(ids)[: request.max_tokens],
            logprobs=list(logprobs)[: min(len(ids), request.max_tokens)],
            finish_reason="stop" if len(ids) <= request.max_tokens else "length",
            policy_version=self.policy_version,
        )

    def has_unfinished(self) -> bool:
        """True while a request is running."""
        return bool(self._running)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Keep the weights and the version."""
        if self._running:
            raise EngineError(f"Weights cannot change while {len(self._running)} requests are unfinished.")
        if self._asleep:
            raise EngineError("Weights cannot be loaded while the engine sleeps: wake it first.")
        self.weights = dict(weights)
        self.policy_version = policy_version
        self.events.append(("update", policy_version))

    def sleep(self) -> None:
        """Serve nothing until `wake`."""
        if self._running:
            raise EngineError(f"The engine cannot sleep while {len(self._running)} requests are unfinished.")
        if not self._asleep:
            self.events.append(("sleep",))
        self._asleep = True

    def wake(self) -> None:
        """Serve again."""
        if self._asleep:
            self.events.append(("wake",))
        self._asleep = False

    def stats(self) -> dict[str, float]:
        """Requests served and steps taken."""
        return {"requests": float(len(self.requests)), "steps": float(self.steps_taken)}

    def close(self) -> None:
        """Record the call in `events`."""
        self.events.append(("close",))
