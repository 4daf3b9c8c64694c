"""Errors raised at opdlight's boundaries. Each is also the standard type a caller would expect."""

from collections.abc import Iterator
from contextlib import contextmanager


class OpdError(Exception):
    """Base of every error that opdlight raises on purpose. Its text says what to do next."""


class ConfigError(OpdError, ValueError):
    """A configuration value is unknown, of the wrong type, or contradicts another one."""

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
        """Name the config `key`, what was `expected` and what came (`got`)."""
        return cls(f"Expected `{key}` to be {expected}, but got {got!r}.")


class MissingDependencyError(OpdError, ImportError):
    """An optional package is not installed."""

    @classmethod
    def extra(cls, what: str, extra: str) -> "MissingDependencyError":
        """Say which `extra` of opdlight provides `what`."""
        return cls(f"{what} needs the extra `{extra}`: pip install 'opdlight[{extra}]'")


class EnvError(OpdError, RuntimeError):
    """An environment broke its contract."""


class PlainTextError(EnvError):
    """Text of an environment spells a control token, and the tokenizer cannot write it as ordinary text."""


class NoExpertError(EnvError, LookupError):
    """An environment has no expert that could demonstrate its task."""


class VocabularyError(OpdError, ValueError):
    """Teacher and student do not share the token ids that distillation compares."""


class CheckpointError(OpdError, OSError):
    """A model folder or checkpoint cannot be used."""


class TrainingError(OpdError, ArithmeticError):
    """Training cannot go on: too many updates were not finite."""


class UnfinishedError(OpdError, RuntimeError):
    """All that could be kept of a run was kept, but a part of its end failed."""


class EngineError(OpdError, RuntimeError):
    """The rollout engine refused a request or answered with something unusable."""


class ServerError(OpdError, ConnectionError):
    """A model server is away, refuses a request, or answers with something that nothing can be trained on."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status  # of HTTP, if the server refused
