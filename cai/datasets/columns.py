"""What the formats have in common: how a value is taken from a row, under the name that its column has in the file."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cai.codec import shown
from cai.datasets.labelled import Draft, Verdict, alternating, chosen_draft, only_response, turns_of
from cai.datasets.rows import Row, Unusable
from cai.types import Turn

__all__ = [
    "TIE",
    "Columns",
    "chosen_row",
    "get",
    "judged_row",
    "number",
    "numbers",
    "object_of",
    "objects_of",
    "text_of",
    "who",
    "word",
]

Columns = Mapping[str, str]

TIE: Final = frozenset({"tie", "both", "neither", "equal", "draw", "tie (bothbad)"})


def get(row: Row, columns: Columns, name: str) -> Any:
    """The value of a column that must be there."""
    column = columns.get(name, name)
    if row.get(column) is None:
        raise Unusable("missing_column", f"no {name} (column {column!r}); the row has {', '.join(map(str, row))}")
    return row[column]


def text_of(value: object, name: str) -> str:
    """A text, or a message of the assistant's in a list of its own."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return only_response(turns_of(value, name))
    raise Unusable("not_text", f"{name}: must be a text, got {shown(value)}")


def object_of(value: object, name: str) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise Unusable("not_an_object", f"{name}: must be an object, got {shown(value)}")
    return value


def objects_of(value: object, name: str) -> list[dict[str, Any]]:
    """Objects in a list."""
    if not isinstance(value, list):
        raise Unusable("not_a_list", f"{name}: must be a list, got {shown(value)}")
    return [object_of(item, name) for item in value]


def number(value: object, name: str) -> float | None:
    """A finite number, also one that is written as text; None for what is missing (null, empty, NaN)."""
    if value is None or value == "" or (isinstance(value, str) and value.strip().lower() in ("nan", "n/a")):
        return None
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.inf
    except ValueError:
        found = math.inf
    if math.isinf(found):
        raise Unusable("not_a_number", f"{name}: must be a number, got {shown(value)}")
    return None if math.isnan(found) else found


def numbers(row: Row, columns: Columns, names: tuple[str, ...]) -> dict[str, float]:
    """Those of `names` that the row has a number for."""
    found = {name: number(row.get(columns.get(name, name)), name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def who(row: Row, columns: Columns) -> dict[str, Any]:
    """Who judged."""
    return {name: word(row.get(columns.get(name, name))) for name in ("person", "labeler")}


def word(value: object) -> str:
    """A name, which in the file may be a number; empty for none."""
    return "" if value is None else str(value)


def _about(row: Row, columns: Columns) -> dict[str, Any]:
    tags = row.get(columns.get("tags", "tags")) or ()
    if isinstance(tags, str):
        tags = (tags,)
    return {"tags": tuple(map(str, tags)), "user": word(row.get(columns.get("user", "user")))}


def chosen_row(turns: Sequence[Turn], chosen: str, rejected: str, row: Row, columns: Columns, **more: Any) -> Draft:
    """The draft of a row that names the better response."""
    dialogue = alternating(turns)
    more = {"joined": len(dialogue) < len(turns), **who(row, columns), **_about(row, columns), **more}
    return chosen_draft(dialogue, chosen, rejected, **more)


def judged_row(
    turns: Sequence[Turn], texts: Sequence[str], verdicts: Sequence[Verdict], row: Row, columns: Columns, **more: Any
) -> Draft:
    """The draft of a row whose order of responses says nothing about which is better."""
    dialogue = alternating(turns)
    more = {"joined": len(dialogue) < len(turns), **_about(row, columns), **more}
    return Draft(turns=dialogue, responses=tuple(texts), verdicts=tuple(verdicts), **more)
