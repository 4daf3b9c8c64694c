"""The protocol of a rollout engine, which takes and returns token ids, and the types of its requests and replies."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol, Self

from torch import Tensor

from opdlight.bounds import Bounds, NonNegativeFloat, NonNegativeInt
from opdlight.errors import ConfigError, EngineError

NO_WEIGHTS = -1  # the `policy_version` of an engine that has lost its weights in sleep


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The rollout policy: how tokens are drawn from the student's distribution.

    Raises:
        ConfigError: for a value that is out of bounds.
    """

    temperature: NonNegativeFloat = 1.0  # logits are divided by it; 0 is greedy
    top_p: Annotated[float, Bounds(above=0, at_most=1)] = 1.0  # mass of the most probable tokens that are drawn from
    stop: Sequence[NonNegativeInt | str] = ()  # further stop tokens, beside those of the model's folder

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
        """The same policy with each string in `stop` replaced by its id.

        Args:
            tokenizer: of the model that samples.
            skip_unknown: leave out a stop that is not a token of this model; by default that is an error.

        Raises:
            ConfigError: naming `sampling.stop`, for a string that is not exactly one token, or an unknown id.
        """
        vocabulary, ids = tokenizer.get_vocab(), []
        known = set(vocabulary.values())
        for token in self.stop:
            encoded = [token] if isinstance(token, int) else [vocabulary[token]] if token in vocabulary else []
            encoded = encoded or list(tokenizer(token, add_special_tokens=False)["input_ids"])
            if len(encoded) == 1 and encoded[0] in known and encoded[0] != tokenizer.unk_token_id:
                ids.append(encoded[0])
            elif not skip_unknown:
                raise _wrong_stop(token)
        return replace(self, stop=ids)

    def stop_ids(self, of_model: Sequence[int]) -> list[int]:
        """All ids that end a completion: those of the model and those of `stop`, which must be resolved."""
        return sorted({*of_model, *(token for token in self.stop if isinstance(token, int))})


def _wrong_stop(token: object) -> ConfigError:
    return ConfigError.wrong(
        "sampling.stop", expected="a list of ids or texts, each one token of the vocabulary", got=token
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion to generate."""

    request_id: str
    prompt_ids: list[int]  # [P]
    max_tokens: int  # longest completion, in tokens
    sampling: Sampling
    seed: int | None = None  # same weights, prompt and seed: same completion; None: the engine's own random stream

    def check(self, max_model_len: int) -> None:
        """Check that the request is complete and fits a context of `max_model_len` tokens.

        Raises:
            EngineError: if it is not.
        """
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
    """The engine's reply to a request."""

    request_id: str
    token_ids: list[int]  # [C] the stop token included when it was sampled
    logprobs: list[float]  # [C] log π of the full distribution at temperature 1, before top-p (nats)
    finish_reason: Literal["stop", "length"]
    policy_version: int  # number of weight updates the engine had received


class Engine(Protocol):
    """Generates completions. Every `step` advances all running requests, so a request can be added at any time.

    An engine starts awake. It sleeps while the student trains and is woken before weights or requests come; one that
    has no memory to lend does nothing in `sleep` and `wake`.
    """

    policy_version: int  # number of updates that its weights have had; NO_WEIGHTS if it lost them in sleep
    max_model_len: int
    shares_cores: bool  # `step` computes on the cores of this machine, which environments need too

    def add_request(self, request: Request) -> None:
        """Queue a request; raises EngineError if it cannot be served."""

    def step(self) -> list[Completion]:
        """Do one decoding step for all running requests and return the completions that it finished."""

    def has_unfinished(self) -> bool:
        """True while a request is queued or running."""

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Load weights, named as in a checkpoint; raises EngineError if they do not fit or requests are unfinished.

        With several trainer processes every rank must call it: the weights of a sharded student are gathered in it.
        """

    def sleep(self) -> None:
        """Free the memory that the trainer can use; raises EngineError while requests are unfinished.

        Weights may be lost; `policy_version` is NO_WEIGHTS then. Sleeping twice is harmless, closing in sleep, too.
        """

    def wake(self) -> None:
        """Take back the memory that `update_weights` needs, and where no weights are lost all of it.

        An engine that is awake stays as it is.
        """

    def stats(self) -> dict[str, float]:
        """Counters since the engine was started; `update_bytes` is the size of all weights that it was sent."""

    def close(self) -> None:
        """Free the model and its cache, awake or asleep."""
