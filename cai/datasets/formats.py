"""The formats of preference data: each is a function from a row to a Draft, or raises Unusable.

`columns` gives the name that a column has in the file, by the name that it has here: {"prompt": "question"}. Columns
that every format takes where they are: `tags`, `user` (who wrote the prompt), `person` (who judged), `labeler`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cai.datasets import annotation_tools, hh
from cai.datasets.columns import TIE, Columns, chosen_row, get, judged_row, number, numbers, objects_of, text_of, who
from cai.datasets.labelled import NO_RESPONSE, Draft, Verdict, only_response, turns_of
from cai.datasets.rows import Row, Unusable
from cai.types import Feedback, Pair, Turn

__all__ = ["FORMATS", "Format"]

_FIRST: Final = frozenset({"first", "a", "left", "model_a", "response_a"})
_SECOND: Final = frozenset({"second", "b", "right", "model_b", "response_b"})


# --- TRL --------------------------------------------------------------------------------------------------------------


def trl(row: Row, columns: Columns) -> Draft:
    """TRL's preference format: `chosen` and `rejected`, with the prompt in a column of its own (explicit) or at the
    start of both (implicit); texts, or messages. Columns `p_chosen`, `weight` and `margin` are taken where they are.
    """
    chosen, rejected = get(row, columns, "chosen"), get(row, columns, "rejected")
    if row.get(columns.get("prompt", "prompt")) is not None:
        turns = turns_of(get(row, columns, "prompt"), "prompt")
        texts = [_completion(value, turns) for value in (chosen, rejected)]
    elif isinstance(chosen, str) and isinstance(rejected, str):
        shared = _shared_text(chosen, rejected)
        turns, texts = [Turn("user", shared)], [chosen[len(shared) :], rejected[len(shared) :]]
    else:
        both = turns_of(chosen, "chosen"), turns_of(rejected, "rejected")
        num_shared = next((i for i, (a, b) in enumerate(zip(*both, strict=False)) if a != b), min(map(len, both)))
        turns = both[0][:num_shared]
        texts = [only_response(messages[num_shared:]) for messages in both]
    more = numbers(row, columns, ("p_chosen", "weight", "margin"))
    return chosen_row(turns, texts[0], texts[1], row, columns, **more)


def _completion(value: object, prompt: list[Turn]) -> str:
    """The response in a `chosen` or `rejected` beside an explicit prompt, which some datasets repeat in front of it."""
    if isinstance(value, str):
        return value
    turns = turns_of(value, "chosen and rejected")
    return only_response(turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns)


def _shared_text(chosen: str, rejected: str) -> str:
    """What two texts begin with: TRL's own rule for an implicit prompt that is text."""
    if hh.is_dialogue(chosen):
        raise Unusable("another_format", "this is a dialogue of HH-RLHF: format hh")
    end = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if end is None:
        raise Unusable(NO_RESPONSE, "one of chosen and rejected begins with the other")
    return chosen[: end - 1] if end and chosen[end - 1] == " " else chosen[:end]


# --- texts that are rated ---------------------------------------------------------------------------------------------


def ratings(row: Row, columns: Columns) -> Draft:
    """Rated responses, as in UltraFeedback: `instruction`, and `completions` with `response`, `overall_score`, `model`.

    The scores make the ranking; equal ones tie, and a response without one is not compared.
    """
    completions = objects_of(get(row, columns, "completions"), "completions")
    texts = tuple(text_of(get(item, columns, "response"), "response") for item in completions)
    scores = [number(item.get(columns.get("overall_score", "overall_score")), "overall_score") for item in completions]
    rated = sorted({score for score in scores if score is not None}, reverse=True)
    ranking = tuple(tuple(k for k, own in enumerate(scores) if own == score) for score in rated)
    if sum(map(len, ranking)) < 2:
        raise Unusable("no_label", "fewer than two responses have a score")
    models = tuple(str(item.get(columns.get("model", "model")) or "") for item in completions)
    said = Verdict(
        feedback=Feedback(shown=(), ranking=ranking), evidence=({"scores": list(scores)},), **who(row, columns)
    )
    turns = turns_of(get(row, columns, "instruction"), "instruction")
    return judged_row(turns, texts, (said,), row, columns, models=models)


# --- plain tables -----------------------------------------------------------------------------------------------------


def plain(row: Row, columns: Columns) -> Draft:
    """A table with `prompt` and either `chosen` and `rejected`, or `first` and `second` and either `preferred` (first,
    second, tie, or the name of the column) or `p` (the probability that the first is better).
    """
    turns = turns_of(get(row, columns, "prompt"), "prompt")
    if columns.get("first", "first") not in row:
        chosen, rejected = (text_of(get(row, columns, name), name) for name in ("chosen", "rejected"))
        return chosen_row(turns, chosen, rejected, row, columns)
    texts = tuple(text_of(get(row, columns, name), name) for name in ("first", "second"))
    given = numbers(row, columns, ("p", "weight", "margin"))
    if "p" in given:
        said = Verdict(pair=Pair(0, 1, **given), **who(row, columns))
    else:
        ranking = _preferred(str(get(row, columns, "preferred")), columns)
        said = Verdict(feedback=Feedback(shown=(0, 1), ranking=ranking), **who(row, columns))
    return judged_row(turns, texts, (said,), row, columns)


def _preferred(value: str, columns: Columns) -> tuple[tuple[int, ...], ...]:
    """The ranking that a word says. Numbers are not guessed: 1 is the second response to some, the first to others."""
    word = value.strip().lower()
    for index, words in enumerate((_FIRST, _SECOND)):
        if word in words or word == columns.get(("first", "second")[index], "").lower():
            return ((index,), (1 - index,))
    if word in TIE:
        return ((0, 1),)
    raise Unusable("unknown_verdict", f"preferred: must be first, second or tie, got {value!r}")


@dataclass(frozen=True, slots=True)
class Format:
    """How to read a row, and which columns that looks at."""

    read: Callable[[Row, Columns], Draft]
    columns: tuple[str, ...]


_ABOUT: Final = ("tags", "user", "person", "labeler")
_NUMBERS: Final = ("weight", "margin")

FORMATS: Final[Mapping[str, Format]] = {
    "argilla": Format(annotation_tools.argilla, ("fields", "responses", "prompt", "question", "tags", "user")),
    "hh": Format(hh.hh, ("chosen", "rejected", *_ABOUT)),
    "label_studio": Format(
        annotation_tools.label_studio, ("data", "annotations", "prompt", "first", "second", "tags", "user")
    ),
    "plain": Format(plain, ("prompt", "chosen", "rejected", "first", "second", "preferred", "p", *_NUMBERS, *_ABOUT)),
    "ratings": Format(ratings, ("instruction", "completions", "response", "overall_score", "model", *_ABOUT)),
    "trl": Format(trl, ("prompt", "chosen", "rejected", "p_chosen", *_NUMBERS, *_ABOUT)),
}
