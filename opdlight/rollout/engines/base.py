"""What a rollout engine is (token ids in, token ids out), and a scripted one for tests."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol, Self

from torch import Tensor

from opdlight.bounds import Bounds, NonNegativeFloat, NonNegativeInt
from opdlight.errors import ConfigError, EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The rollout policy: how tokens are drawn from the student's distribution."""

    temperature: NonNegativeFloat = 1.0  # logits are divided by it; 0 takes the most probable token
    top_p: Annotated[float, Bounds(above=0, at_most=1)] = 1.0  # only the smallest set with this mass is drawn from
    stop: Sequence[NonNegativeInt | str] = ()  # tokens that end a completion, beside the ends of the model's folder

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", tuple(self.stop))
        for token in self.stop:
            legal = token >= 0 if type(token) is int else isinstance(token, str) and token != ""
            if not legal:
                raise _wrong_stop(token)
        if not 0 <= self.temperature < math.inf:
            raise ConfigError.wrong("sampling.temperature", expected="a number ≥ 0", got=self.temperature)
        if not 0 < self.top_p <= 1:
            raise ConfigError.wrong("sampling.top_p", expected="a number in (0, 1]", got=self.top_p)

    def resolve(self, tokenizer: Any, *, skip_unknown: bool = False) -> Self:
        """The same policy with the id that `tokenizer` gives each string of `stop`.

        Args:
            tokenizer: of the model that samples.
            skip_unknown: leave out what is no token of it, which it can never sample; otherwise that is an error.

        Raises:
            ConfigError: naming `sampling.stop`, for a string that is not one token, or an id that is none.
        """
        vocabulary, ids = tokenizer.get_vocab(), []
        known = set(vocabulary.values())
        for token in self.stop:
            written = [token] if isinstance(token, int) else [vocabulary[token]] if token in vocabulary else []
            written = written or list(tokenizer(token, add_special_tokens=False)["input_ids"])
            if len(written) == 1 and written[0] in known and written[0] != tokenizer.unk_token_id:
                ids.append(written[0])
            elif not skip_unknown:
                raise _wrong_stop(token)
        return replace(self, stop=ids)

    def stop_ids(self, own: Sequence[int]) -> list[int]:
        """Every id that ends a completion: the `own` ones of a model, and those of a resolved `stop`."""
        return sorted({*own, *(token for token in self.stop if isinstance(token, int))})


def _wrong_stop(token: object) -> ConfigError:
    return ConfigError.wrong(
        "sampling.stop", expected="a list of ids or texts, each one token of the vocabulary", got=token
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion to generate."""

    request_id: str
    prompt_ids: list[int]  # [P]
    max_tokens: int  # longest completion
    sampling: Sampling
    seed: int | None = None  # same weights, prompt and seed → same completion; None draws from the engine's own stream

    def check(self, max_model_len: int) -> None:
        """Raise EngineError unless the request is complete and fits a context of `max_model_len` tokens."""
        if not self.prompt_ids:
            raise EngineError(f"Expected `prompt_ids` of request {self.request_id} to hold a token, but got none.")
        if unresolved := [token for token in self.sampling.stop if isinstance(token, str)]:
            raise EngineError(f"Expected `stop` of request {self.request_id} to hold ids, but got {unresolved}.")
        if self.max_tokens < 1:
            raise EngineError(
                f"Expected `max_tokens` of request {self.request_id} to be at least 1, but got {self.max_tokens}."
            )
        if len(self.prompt_ids) + self.max_tokens > max_model_len:
            raise EngineError(
                f"Expected request {self.request_id} to fit `engine.max_model_len` = {max_model_len}, but its "
                f"prompt has {len(self.prompt_ids)} tokens and `max_tokens` is {self.max_tokens}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the engine sampled for one request."""

    request_id: str
    token_ids: list[int]  # [C] the stop token included when it was sampled
    logprobs: list[float]  # [C] log π of the full distribution at temperature 1, before top-p (nats)
    finish_reason: Literal["stop", "length"]
    policy_version: int  # number of weight updates the engine had received


class Engine(Protocol):
    """Generates completions; `step` advances every running request, so that requests can join and leave at any time."""

    policy_version: int
    max_model_len: int

    def add_request(self, request: Request) -> None:
        """Queue a request; raises EngineError if it cannot be served."""

    def step(self) -> list[Completion]:
        """One decoding step of all running requests; returns those that finished with it."""

    def has_unfinished(self) -> bool:
        """True while a request is queued or running."""

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Take new weights by checkpoint name; raises EngineError if they do not fit or requests are unfinished."""

    def stats(self) -> dict[str, float]:
        """Counters since the engine started."""

    def close(self) -> None:
        """Release the model and its cache."""
