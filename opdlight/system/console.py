"""The one place that writes on the terminal: lines, tables and progress.

It imports nothing slow, so that a command can show progress while it imports torch.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from lightning_utilities.core.rank_zero import rank_zero_only
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

LOG_WIDTH = 160  # columns of a table where there is no terminal
NARROW = 112  # columns; on a narrower terminal tables put intervals below the figures
LOG_SECONDS = 20.0  # without a terminal, progress is printed at most this often
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # variables of launchers, in Lightning's order
NODES = ("NODE_RANK", "GROUP_RANK")  # the number of the node, where that is all that tells its first process
T = TypeVar("T")


def rank_at_start(variables: Mapping[str, str]) -> int:
    """0 for the first process of the first node, by the environment's variables; another number for any other."""
    rank = next((int(variables[name]) for name in RANKS if name in variables), 0)
    return rank or next((int(variables[name]) for name in NODES if name in variables and "RANK" not in variables), 0)


_RANK = rank_at_start(os.environ)
if _RANK > 0:
    # until Lightning knows the rank, it would take each node's first process for the first one
    rank_zero_only.rank = _RANK  # type: ignore[attr-defined]

console = Console(width=None if Console().is_terminal else LOG_WIDTH, highlight=False, markup=False)
_running: list["ProgressLine"] = []
_silent: list[bool] = []  # not empty after `clear`: no progress is shown any more
_bars: list[Progress] = []  # empty, or the one live display


def is_first_process() -> bool:
    """Whether this is the process that writes files and prints; the only one in a run of one process.

    Right from the start of a command on: Lightning sets the rank when it launches the processes, and before that the
    launcher's environment variables tell it. In a callback, `trainer.is_global_zero` is the same; a method of a
    Lightning logger carries `@rank_zero_only`, as Lightning's own loggers do. `distributed.rank()` is for what belongs
    to collective work in a process group.
    """
    return getattr(rank_zero_only, "rank", _RANK) == 0


def say(text: str, *, style: str = "") -> None:
    """Print one line, unwrapped, from the first process."""
    if is_first_process():
        console.print(Text(text, style=style), soft_wrap=True)


def show(renderable: RenderableType) -> None:
    """Print a table, from the first process."""
    if is_first_process():
        console.print(renderable)


def narrow() -> bool:
    """Whether the terminal has too few columns for a wide table."""
    return console.width < NARROW


def table(*headings: str | Column, **options: Any) -> Table:
    """A table whose cells wrap where the screen is too narrow; nothing is cut off."""
    return Table(*(Column(h, overflow="fold") if isinstance(h, str) else h for h in headings), **options)


class ProgressLine:
    """The progress of something that takes time: a live line in a terminal, printed lines elsewhere.

    Args:
        title: what is being done.
        total: number of steps, if it is known.
        log: whether to print lines where there is no terminal: one at the start and then one every `LOG_SECONDS`.
    """

    def __init__(self, title: str, total: int | None = None, *, log: bool = True) -> None:
        self.title, self.total, self.done, self.log = title, total, 0, log
        self.figures: Sequence[str] = ()
        self.shown = is_first_process() and console.is_terminal and not _silent
        self._said = time.monotonic()
        if self.shown:
            if not _running:
                _bars.append(_bar())
                _bars[0].start()
            self._id = _bars[0].add_task(title, total=total, figures=())
            _running.append(self)
        elif log and not _silent:
            say(title)

    def update(self, done: int, total: int | None = None, *, title: str = "", figures: Sequence[str] = ()) -> None:
        """Show `done` of `total` steps; of the `figures`, which are `name value` pairs, as many as fit."""
        self.done, self.total, self.title = done, total or self.total, title or self.title
        if self in _running:
            self.figures = figures or self.figures
            # a line with figures is redrawn at once: the next update may come before the next regular redraw
            _bars[0].update(
                self._id,
                description=self.title,
                completed=done,
                total=self.total,
                figures=self.figures,
                refresh=bool(figures),
            )
        elif self.log and time.monotonic() - self._said > LOG_SECONDS:
            self._said = time.monotonic()
            say(f"{self.title} {done}" + (f"/{self.total}" if self.total else ""))

    def restart(self, title: str) -> None:
        """Reuse the line for something else, of unknown length."""
        self.title, self.done, self.total = title, 0, None
        if self in _running:
            line = next(task for task in _bars[0].tasks if task.id == self._id)
            line.total, line.start_time = None, _bars[0].get_time()
            _bars[0].update(self._id, description=title, completed=0)

    def advance(self) -> None:
        """Count one more step."""
        self.update(self.done + 1)

    def end(self) -> None:
        """Remove the line from the screen; after the last one the live display is closed."""
        if self in _running:
            _running.remove(self)
            _bars[0].remove_task(self._id)
            if not _running:
                _bars.pop().stop()


@contextmanager
def progress(title: str, total: int | None = None, *, log: bool = True) -> Iterator[ProgressLine]:
    """A `ProgressLine` that is shown while the block runs."""
    line = ProgressLine(title, total, log=log)
    try:
        yield line
    finally:
        line.end()


def track(items: Iterable[T], title: str, total: int | None = None, *, log: bool = True) -> Iterator[T]:
    """Iterate over the items behind a progress line."""
    if total is None and isinstance(items, Sequence):
        total = len(items)
    with progress(title, total, log=log) as line:
        for item in items:
            yield item
            line.advance()


def clear() -> None:
    """Remove all progress lines and show no new ones: the process is about to end."""
    _silent.append(True)
    for line in list(_running):
        line.end()


def _bar() -> Progress:
    """The live display. A line has title, bar, count and time; the figures take the width that is left."""
    title = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, min_width=12))
    columns = [title, _Bar(), _Count(), _Time(), _Figures()]
    # the speed is averaged over the last ten minutes, because steps of different tasks differ in length
    return Progress(*columns, console=console, refresh_per_second=4, transient=True, speed_estimate_period=600)


class _Bar(ProgressColumn):
    """A bar whose width follows the screen's; it pulses where the total is not known."""

    max_refresh = None

    def render(self, task: Task) -> ProgressBar:
        return ProgressBar(
            total=task.total,
            completed=task.completed,
            width=max(8, min(40, console.width // 6)),
            pulse=not task.total,
            animation_time=task.get_time(),
        )

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)


class _Count(ProgressColumn):
    """`3/8`; empty where the total is not known."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f}/{task.total:.0f}" if task.total else "", style="progress.download")

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)


class _Time(ProgressColumn):
    """The time left or, while that is not known, the time that has passed."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left, passed = task.time_remaining, task.elapsed or 0.0
        if left is None or task.finished:
            return Text(_clock(passed), style="progress.elapsed")
        return Text(f"{_clock(left)} left", style="progress.remaining")

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)


class _Figures(ProgressColumn):
    """`name value` pairs; a pair that does not fit is left out."""

    def render(self, task: Task) -> "_Pairs":
        return _Pairs(task.fields["figures"])


class _Pairs:
    def __init__(self, pairs: Sequence[str]) -> None:
        self.pairs = pairs

    def fitting(self, width: int) -> str:
        """The first pairs, as many as fit into `width` columns."""
        count = len(self.pairs)
        while count and cell_len("  ".join(self.pairs[:count])) > width:
            count -= 1
        return "  ".join(self.pairs[:count])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield Text(self.fitting(options.max_width), no_wrap=True, overflow="crop")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, cell_len("  ".join(self.pairs)))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
