"""HH-RLHF (Bai et al. 2022a): rows with `chosen` and `rejected`, two dialogues that differ in the last response.

Every turn is kept: the shared turns are the prompt.
"""

import re
from typing import Final

from cai.datasets.columns import Columns, chosen_row, get
from cai.datasets.labelled import NO_RESPONSE, Draft, alternating
from cai.datasets.rows import Row, Unusable
from cai.types import Turn

__all__ = ["DIFFER_EARLIER", "hh", "is_dialogue"]

DIFFER_EARLIER: Final = "differ_before_the_end"
_HEADER: Final = re.compile(r"\n\n(Human|Assistant):")
_ROLES: Final = {"Human": "user", "Assistant": "assistant"}


def hh(row: Row, columns: Columns) -> Draft:
    """The draft of a row; neighbours of the same role are joined. Raises Unusable."""
    turns = {name: _dialogue(get(row, columns, name), name) for name in ("chosen", "rejected")}
    chosen, rejected = (alternating(turns[name]) for name in ("chosen", "rejected"))
    for name, dialogue in (("chosen", chosen), ("rejected", rejected)):
        if dialogue[-1].role != "assistant":
            raise Unusable(NO_RESPONSE, f"{name} ends with the human")
    if chosen[:-1] != rejected[:-1]:
        raise Unusable(DIFFER_EARLIER, "chosen and rejected differ in more than the last response")
    joined = any(len(alternating(own)) < len(own) for own in turns.values())
    return chosen_row(chosen[:-1], chosen[-1].content, rejected[-1].content, row, columns, joined=joined)


def is_dialogue(text: str) -> bool:
    """Whether a text is written as HH-RLHF writes dialogues."""
    return text.startswith("\n\nHuman:")


def _dialogue(text: object, name: str) -> list[Turn]:
    if not isinstance(text, str) or not is_dialogue(text):
        start = repr(text[:30]) if isinstance(text, str) else type(text).__name__
        raise Unusable("not_a_dialogue", f"{name}: must start with two line breaks and 'Human:', got {start}")
    _, *rest = _HEADER.split(text)
    return [Turn(_ROLES[header], content.strip()) for header, content in zip(rest[::2], rest[1::2], strict=True)]
