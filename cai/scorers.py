"""What measures responses. A scorer never trains anything unless a run's configuration makes it a reward."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from cai.types import Prompt

__all__ = ["Scorer"]


@runtime_checkable
class Scorer(Protocol):
    """Gives every response a number in each named column."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        """Columns of len(prompts) numbers; NaN where a column does not apply (over-refusal of a harmful prompt)."""
        ...
