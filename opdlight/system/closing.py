"""The end of a run: a part that fails does not keep the others from being done."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.text import Text

from opdlight.errors import UnfinishedError
from opdlight.system.console import console


class Closing:
    """Collects the errors of the parts of a run's end, and raises them together after the last part.

    Args:
        again: the command that repeats the parts that failed, for the error; None if there is none.
    """

    def __init__(self, again: str | None = None) -> None:
        self.again = again
        self.failed: dict[str, str] = {}  # part → its error
        self._errors: list[Exception] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Catch an error of the block and record it under `name`."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  no error may keep the other parts from being done
            self.note(name, error)

    def note(self, name: str, error: Exception) -> None:
        """Record and print that part `name` has failed; only its first error counts."""
        if name not in self.failed:
            self._errors.append(error)
            self.failed[name] = f"{type(error).__name__}: {error}".replace("\n", " ").strip()
            console.print(Text(f"failed: {name} ({self.failed[name]})"), soft_wrap=True)

    def end(self) -> None:
        """Call this last.

        Raises:
            UnfinishedError: if a part has failed; it names all of them and the command that repeats them.
        """
        if not self.failed:
            return
        what = "; ".join(f"{name} ({why})" for name, why in self.failed.items())
        how = f" To do it again: {self.again}" if self.again else ""
        raise UnfinishedError(f"The end of the run is not complete: {what}.{how}") from ExceptionGroup(
            "what failed", self._errors
        )
