"""The workbench on the terminal: tables and wrapped text, in colour on a terminal and plain elsewhere.

What models and people wrote is shown as it is, but for control characters, which a terminal would obey.
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cai.visible import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["Cell", "console", "counted", "heading", "item", "percent", "signed", "table"]

_WIDTH = 120  # of what is no terminal
_NONE = "\u2013"
Cell = str | tuple[str, str]  # a text, or a text and its style


def console() -> "Console":
    """Standard output, as wide as the terminal."""
    from rich.console import Console

    class Piped(Console):
        """Without rich's way to end where nobody reads: exit code 1, which says that an example failed."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    plain = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Piped(width=_WIDTH if plain else None, highlight=False, markup=False, emoji=False)


def heading(out: "Console", text: str) -> None:
    """A line of its own, after an empty one."""
    out.print()
    out.print(visible(text), style="bold")


def item(out: "Console", label: str, text: Cell, indent: int = 2, width: int = 12) -> None:
    """`label  text`, the text wrapped beside its label."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=indent + width, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(_cell((" " * indent + label, "dim")), _cell(text))
    _print(out, grid)


def table(out: "Console", head: Sequence[str], rows: Sequence[Sequence[Cell]], numbers: Sequence[int] = ()) -> None:
    """A table without lines; the columns with these numbers are set to the right."""
    from rich.table import Table

    found = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for number, name in enumerate(head):
        found.add_column(name, justify="right" if number in numbers else "left", overflow="fold")
    for row in rows:
        found.add_row(*map(_cell, row))
    _print(out, found)


def _print(out: "Console", found: object) -> None:
    """Without the blanks that fill a column up to the right."""
    with out.capture() as captured:
        out.print(found)
    for line in captured.get().splitlines():
        out.file.write(f"{line.rstrip()}\n")


def _cell(cell: Cell) -> "Text":
    from rich.text import Text

    text, style = cell if isinstance(cell, tuple) else (cell, "")
    return Text(visible(text), style=style)


def counted(num: int, noun: str) -> str:
    """`1 finding`, `2,400 findings`."""
    return f"{num:,} {noun}{'s'[: num != 1]}"


def percent(p: float | None) -> str:
    """A probability as `97.3 %`; a dash for none."""
    return _NONE if p is None else f"{100 * p:.1f} %"


def signed(p: float | None) -> str:
    """A difference of probabilities in points: `+12.5`; a dash for none."""
    return _NONE if p is None else f"{100 * p:+.1f}"
