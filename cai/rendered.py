"""A rendered prompt: text with slots, where an engine's answers go.

A choice slot has options, whose probabilities are read; a text slot is for a sampled continuation.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cai.engines.base import EnginePrompt
from cai.errors import PromptError, unknown
from cai.prompt_settings import broken_up
from cai.types import Turn

__all__ = ["ChoiceSlot", "Rendered", "Slot", "TextSlot"]


@dataclass(frozen=True, slots=True)
class ChoiceSlot:
    """A place for one of `options`."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextSlot:
    """A place for sampled text, which ends before the first of the `stop` strings."""

    max_new_tokens: int
    stop: tuple[str, ...]


Slot = ChoiceSlot | TextSlot


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered template: `turns` (empty without blocks), then `parts`, of which no two neighbours are both text.

    `quoted` are the places of values: (place, start, end), where place is the number of the turn, or len(turns) and
    the number of the part. `num_neutralised` counts the reserved markers that were broken up in the values. `reserved`
    finds these markers in sampled texts too, which may repeat a value and are to be as inert.
    """

    turns: tuple[Turn, ...]
    parts: tuple[str | ChoiceSlot | TextSlot, ...]
    quoted: tuple[tuple[int, int, int], ...] = ()
    num_neutralised: int = 0
    reserved: str | None = None

    @property
    def slots(self) -> tuple[ChoiceSlot | TextSlot, ...]:
        """The slots, in order."""
        return tuple(part for part in self.parts if not isinstance(part, str))

    def prefix(self) -> EnginePrompt:
        """Everything before the first slot."""
        return self.fill(())

    def fill(self, values: Sequence[str]) -> EnginePrompt:
        """Everything before the next slot, once the first slots are filled with `values`; all when none is left. The
        values of text slots are quoted, and the reserved markers in them are broken up.

        PromptError when there are more values than slots, or a value is not an option of its slot.
        """
        slots = self.slots
        if len(values) > len(slots):
            raise PromptError(f"{len(values)} values for {len(slots)} slots")
        for slot, value in zip(slots, values, strict=False):
            if isinstance(slot, ChoiceSlot) and value not in slot.options:
                raise PromptError(unknown("option", value, slot.options))
        text: list[str] = []
        starts: list[int] = []
        waiting = list(values)
        last = len(self.turns)
        quoted = [place for place in self.quoted if place[0] < last]
        for part in self.parts:
            if not isinstance(part, str) and not waiting:
                break
            starts.append(sum(map(len, text)))
            value = part if isinstance(part, str) else waiting.pop(0)
            if isinstance(part, TextSlot):
                value, _ = self._inert(value)
                quoted.append((last, starts[-1], starts[-1] + len(value)))
            text.append(value)
        for number, start, end in self.quoted:
            if last <= number < last + len(starts):
                quoted.append((last, starts[number - last] + start, starts[number - last] + end))
        return EnginePrompt(turns=self.turns, text="".join(text), quoted=tuple(sorted(quoted)))

    def num_broken(self, values: Sequence[str]) -> int:
        """How many reserved markers `fill` breaks up in the sampled texts among `values`."""
        filled = zip(self.slots, values, strict=False)
        return sum(self._inert(value)[1] for slot, value in filled if isinstance(slot, TextSlot))

    def _inert(self, value: str) -> tuple[str, int]:
        return broken_up(value, None if self.reserved is None else re.compile(self.reserved))
