"""Between the fields of the page and Feedback. Fields name responses by where they stood, Feedback by what they are."""

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from cai.errors import LabelerError
from cai.labelers.feedback import judgment_of
from cai.serve.form import Form
from cai.types import Comparison, Feedback

__all__ = ["LETTERS", "feedback_of", "fields_of", "whole_number"]

T = TypeVar("T")
LETTERS: Final = "ABCDEFGHI"  # what the responses are called on the page
_MAX_TEXT: Final = 50_000  # characters of a correction or a critique
_TIE: Final = "tie"


def feedback_of(
    fields: Mapping[str, str], form: Form, comparison: Comparison, shown: Sequence[int], *, instructions: str
) -> Feedback:
    """What the page sent. Raises LabelerError, in words for the person, when something is missing or cannot be.

    `verdict` is a, b or tie, with the strength behind the letter where that is asked (two responses); `place.0` and so
    on are places from 1, equal ones tied (more responses); `rating.0`, `flag.0.NAME`, `corrected`, `correction`,
    `critique` and `skip` are the rest.
    """
    critique = _text(fields, "critique") if form.critique else ""
    if reason := fields.get("skip", "").strip():
        return Feedback(shown=tuple(shown), skipped=reason[:500], critique=critique, instructions=instructions)
    ranking, strength = _pair(fields, form, shown) if len(shown) == 2 else (_places(fields, shown), 0)
    corrected, correction = _correction(fields, comparison, shown) if form.correction else (None, "")
    feedback = Feedback(
        shown=tuple(shown),
        ranking=ranking,
        strength=strength,
        ratings=_by_response(_ratings(fields, shown), shown) if form.ratings else (),
        flags=_by_response(_flags(fields, form, shown), shown) if form.flags else (),
        corrected=corrected,
        correction=correction,
        critique=critique,
        instructions=instructions,
    )
    judgment_of(comparison, feedback, number=0, labeler="human", person="")  # what this refuses, no run could read
    return feedback


def fields_of(feedback: Feedback) -> dict[str, str]:
    """The fields that give `feedback` again: what the page is filled with after an answer was taken back."""
    position = {index: place for place, index in enumerate(feedback.shown)}
    fields = {"critique": feedback.critique}
    if feedback.skipped is not None:
        return {**fields, "skip": feedback.skipped}
    if len(feedback.shown) == 2:
        side = _TIE if len(feedback.ranking) == 1 else "ab"[position[feedback.ranking[0][0]]]
        fields["verdict"] = f"{side}{feedback.strength or ''}"
    else:
        for place, group in enumerate(feedback.ranking, start=1):
            fields |= {f"place.{position[index]}": str(place) for index in group}
    fields |= {f"rating.{position[index]}": str(rating) for index, rating in enumerate(feedback.ratings)}
    for index, names in enumerate(feedback.flags):
        fields |= {f"flag.{position[index]}.{name}": "yes" for name in names}
    if feedback.corrected is not None:
        fields |= {"corrected": str(position[feedback.corrected]), "correction": feedback.correction}
    return fields


def _pair(fields: Mapping[str, str], form: Form, shown: Sequence[int]) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The ranking of two, and the strength."""
    strengths = ("1", "2", "3") if form.strength else ("",)
    verdict = fields.get("verdict", "")
    if verdict == _TIE:
        return (tuple(sorted(shown)),), 0
    if verdict not in {side + strength for side in "ab" for strength in strengths}:
        raise LabelerError("Which response is better? Choose one, or a tie, or skip.")
    best, other = shown if verdict[0] == "a" else (shown[1], shown[0])
    return ((best,), (other,)), int(verdict[1:] or 0)


def _places(fields: Mapping[str, str], shown: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The ranking of more than two: equal places are tied, and places may be left out."""
    groups: dict[int, list[int]] = {}
    for position, index in enumerate(shown):
        place = whole_number(fields.get(f"place.{position}"), 1, len(shown))
        if place is None:
            raise LabelerError(f"Response {LETTERS[position]} has no place yet.")
        groups.setdefault(place, []).append(index)
    return tuple(tuple(sorted(groups[place])) for place in sorted(groups))


def _ratings(fields: Mapping[str, str], shown: Sequence[int]) -> list[int]:
    ratings = []
    for position in range(len(shown)):
        rating = whole_number(fields.get(f"rating.{position}"), 1, 7)
        if rating is None:
            raise LabelerError(f"Response {LETTERS[position]} has no rating yet.")
        ratings.append(rating)
    return ratings


def _flags(fields: Mapping[str, str], form: Form, shown: Sequence[int]) -> list[tuple[str, ...]]:
    return [
        tuple(name for name in form.flags if fields.get(f"flag.{position}.{name}") == "yes")
        for position in range(len(shown))
    ]


def _by_response(values: Sequence[T], shown: Sequence[int]) -> tuple[T, ...]:
    """From the order shown to the order of the comparison."""
    return tuple(value for _, value in sorted(zip(shown, values, strict=True), key=lambda pair: pair[0]))


def _correction(
    fields: Mapping[str, str], comparison: Comparison, shown: Sequence[int]
) -> tuple[int, str] | tuple[None, str]:
    chosen = fields.get("corrected", "")
    if not chosen:
        return None, ""
    position = whole_number(chosen, 0, len(shown) - 1)
    text = _text(fields, "correction")
    if position is None or not text:
        raise LabelerError("The edited response is empty; write it, or close the editor.")
    same = [LETTERS[k] for k, index in enumerate(shown) if comparison.responses[index].text.strip() == text.strip()]
    if same:
        raise LabelerError(f"The edited text is still that of response {same[0]}; change it, or close the editor.")
    return shown[position], text


def _text(fields: Mapping[str, str], name: str) -> str:
    """As it was typed (pages may send line ends as CR LF); empty when it is blank."""
    text = fields.get(name, "").replace("\r\n", "\n")
    if len(text) > _MAX_TEXT:
        raise LabelerError(f"The {name} is too long: {len(text):,} characters, {_MAX_TEXT:,} at most.")
    return text if text.strip() else ""


def whole_number(value: str | None, lowest: int, highest: int) -> int | None:
    """A whole number from `lowest` to `highest`, 9 digits at most, or None."""
    if value is None or not (value.isascii() and value.isdecimal() and len(value) < 10):
        return None
    return int(value) if lowest <= int(value) <= highest else None
