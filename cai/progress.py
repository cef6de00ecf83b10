"""Progress of long work, on stderr (stdout is for results): a bar on a terminal, a plain line now and then elsewhere.

>>> with progress("labels", total=1200, unit="pairs") as bar:  # doctest: +SKIP
...     for judgment in labeler.label(comparisons):
...         bar.advance()
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Bar", "duration", "progress"]

_EVERY_SECONDS = 10.0  # between plain lines: often enough to show life, seldom enough for a log file


class Bar(Protocol):
    """What the body of `progress` gets."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """`amount` more units are done; `note` (a loss, a reward) is shown behind the count."""
        ...


def duration(seconds: float) -> str:
    """Seconds in words of at most two units.

    >>> duration(4.21), duration(83), duration(7260)
    ('4.2 s', '1 min 23 s', '2 h 1 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(slots=True)
class PlainBar:
    """Lines like `labels: 360/1200 pairs (30 %), about 1 min 10 s left`; none for work that ends quickly."""

    label: str
    total: float | None
    unit: str
    write: Callable[[str], object]
    clock: Callable[[], float] = time.monotonic
    done: float = 0
    start: float = field(init=False)
    last: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.last = self.clock()

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count, and write a line when the last one is long enough ago."""
        self.done += amount
        now = self.clock()
        if now - self.last < _EVERY_SECONDS:
            return
        self.last = now
        line = f"{self.label}: {self.done:g}"
        if self.total:
            line += f"/{self.total:g} {self.unit} ({100 * self.done / self.total:.0f} %)"
            if 0 < self.done < self.total:
                line += f", about {duration((now - self.start) * (self.total / self.done - 1))} left"
        else:
            line += f" {self.unit}"
        self.write(f"{line}{', ' if note else ''}{note}\n")


@contextmanager
def progress(label: str, *, total: float | None = None, unit: str = "rows") -> Iterator[Bar]:
    """Show the progress of the body. `total` is the number of units there will be, None when nobody knows."""
    if not sys.stderr.isatty():
        yield PlainBar(label, total, unit, sys.stderr.write)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=total, note="")

        class _RichBar:
            def advance(self, amount: float = 1, note: str = "") -> None:
                bars.update(task, advance=amount, note=note)

        yield _RichBar()
