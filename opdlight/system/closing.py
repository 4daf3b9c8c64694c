"""The end of a run: no part of it is lost because another one fails."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.text import Text

from opdlight.errors import UnfinishedError
from opdlight.system.console import console


class Closing:
    """Runs the parts of an end one by one, says which failed, and raises only when all were tried.

    Args:
        again: the command that does what failed once more; None if there is none.
    """

    def __init__(self, again: str | None = None) -> None:
        self.again = again
        self.failed: dict[str, str] = {}  # part → why
        self._errors: list[Exception] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within, an error is noted under this name and goes no further."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever it is, the other parts must not be lost
            self.note(name, error)

    def note(self, name: str, error: Exception) -> None:
        """Say once that a part has failed."""
        if name not in self.failed:
            self._errors.append(error)
            self.failed[name] = f"{type(error).__name__}: {error}".replace("\n", " ").strip()
            console.print(Text(f"failed: {name} ({self.failed[name]})"), soft_wrap=True)

    def end(self) -> None:
        """Raise UnfinishedError if a part has failed, naming all of them and the command that does them again."""
        if not self.failed:
            return
        what = "; ".join(f"{name} ({why})" for name, why in self.failed.items())
        how = f" To do it again: {self.again}" if self.again else ""
        raise UnfinishedError(f"The end of the run is not complete: {what}.{how}") from ExceptionGroup(
            "what failed", self._errors
        )
