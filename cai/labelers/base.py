"""The seam between comparisons and whoever judges them: one operation, label."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from cai.types import Comparison, Judgment

__all__ = ["Keeper", "Labeler"]


@runtime_checkable
class Labeler(Protocol):
    """Judges comparisons. It may abstain (a judgment without pairs that says why) but never invents a label."""

    name: str

    def texts(self) -> dict[str, str]:
        """Hashes of the texts that labels depend on (constitution, templates), for the stage's fingerprint."""
        ...

    def label(self, comparisons: Sequence[Comparison], *, done: Collection[str] = ()) -> Iterator[Judgment]:
        """Yield the judgments of every comparison whose id is not in `done`, as they are ready.

        Judgments of one comparison come together. Deterministic in `comparisons`: passing over `done` changes nothing
        in the rest. A labeler holds no hidden state between calls.
        """
        ...

    def facts(self) -> dict[str, float]:
        """Totals for the stage's summary: tokens, FLOPs, cost in USD, abstentions, ..."""
        ...


@runtime_checkable
class Keeper(Protocol):
    """A labeler that pays for what its judgments are made of, and keeps it."""

    def keep_in(self, folder: Path) -> None:
        """Journals of single answers go to `folder`, from where a later call with the same comparisons goes on."""
        ...
