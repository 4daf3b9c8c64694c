"""Errors that opdlight raises. Each is also an instance of the standard exception that a caller would expect."""

from collections.abc import Iterator
from contextlib import contextmanager


class OpdError(Exception):
    """Base of every error that opdlight raises on purpose; its message says what to do."""


class ConfigError(OpdError, ValueError):
    """A config key is unknown, or its value is of the wrong type, out of bounds, or contradicts another one."""

    @classmethod
    @contextmanager
    def instead(cls, before: str = "") -> Iterator[None]:
        """Within, a ValueError of code that knows no config becomes a ConfigError, with `before` before its text."""
        try:
            yield
        except ValueError as error:
            raise cls(f"{before}{error}") from error

    @classmethod
    def wrong(cls, key: str, *, expected: str, got: object) -> "ConfigError":
        """The error for a config `key` that was `expected` to be something other than what it is (`got`)."""
        return cls(f"Expected `{key}` to be {expected}, but got {got!r}.")


class MissingDependencyError(OpdError, ImportError):
    """An optional package is not installed."""

    @classmethod
    def extra(cls, what: str, extra: str) -> "MissingDependencyError":
        """The error for `what`, which the `extra` of opdlight would install."""
        return cls(f"{what} needs the extra `{extra}`: pip install 'opdlight[{extra}]'")


class EnvError(OpdError, RuntimeError):
    """An environment violated its contract (`envs/base.py`)."""


class PlainTextError(EnvError):
    """A text of an environment spells a control token, and the tokenizer cannot encode it as ordinary text."""


class NoExpertError(EnvError, LookupError):
    """An environment has no expert that could demonstrate its task."""


class VocabularyError(OpdError, ValueError):
    """Teacher and student do not share the token ids that distillation compares."""


class CheckpointError(OpdError, OSError):
    """A model folder or checkpoint cannot be used."""

    @classmethod
    @contextmanager
    def at(cls, key: str) -> Iterator[None]:
        """Within, such an error of code that knows no config gets the config `key` that names the model."""
        try:
            yield
        except cls as error:
            raise cls(f"`{key}`: {error}") from error


class TrainingError(OpdError, ArithmeticError):
    """Training cannot continue: too many updates were not finite, or one trajectory does not fit into memory."""


class UnfinishedError(OpdError, RuntimeError):
    """A part of the end of a run failed; all other parts were done."""


class EngineError(OpdError, RuntimeError):
    """The rollout engine refused a request or returned an invalid completion."""


class ServerError(OpdError, ConnectionError):
    """A model server cannot be reached, refuses a request, or sends an invalid reply.

    Args:
        message: text of the error.
        status: HTTP status, if the server refused the request.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
