"""What annotation tools export: Argilla's records and Label Studio's tasks. Every annotation becomes a judgment."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cai.codec import shown
from cai.datasets.columns import TIE, Columns, get, judged_row, number, object_of, objects_of, text_of, word
from cai.datasets.labelled import Draft, Verdict, turns_of
from cai.datasets.rows import Row, Unusable
from cai.types import Feedback, Provenance

__all__ = ["argilla", "label_studio"]

_NOT_SUBMITTED: Final = ("draft", "discarded", "pending")


def argilla(row: Row, columns: Columns) -> Draft:
    """A record as `Dataset.records.to_json` and `to_list` write it (Argilla 2): `fields`, and `responses` of people by
    question. Suggestions are a model's, and no labels.

    `prompt` is a field; the others are the texts that are compared, or only those that `responses` names (separated by
    commas). `question` is needed where several questions have names of fields for answers: a label (the name of the
    better one, or tie), or a ranking (names, best first, or names with ranks).
    """
    fields = object_of(get(row, columns, "fields"), "fields")
    names = [name for name in fields if name != columns.get("prompt", "prompt")]
    if "responses" in columns:
        names = [name.strip() for name in columns["responses"].split(",")]
    texts = [text_of(get(fields, {}, name), name) for name in names]
    answered = {
        question: objects_of(answers, question)
        for question, answers in object_of(get(row, {}, "responses"), "responses").items()
        if question == columns.get("question", question)
    }
    about = {q: answers for q, answers in answered.items() if any(set(_names(a)) & set(names) for a in answers)}
    if len(about) != 1:
        said = f"answers to {', '.join(about)} do; say which with the column 'question'" if about else "no answer does"
        raise Unusable("several_questions" if about else "no_label", f"{said} (name one of {', '.join(names)})")
    verdicts = [_answer(answer, names) for answer in next(iter(about.values()))]
    return judged_row(turns_of(get(fields, columns, "prompt"), "prompt"), texts, verdicts, row, columns)


def _names(answer: Mapping[str, Any]) -> list[str]:
    """The fields that an answer names, best first."""
    value = answer.get("value")
    items = value if isinstance(value, list) else [value]
    return [str(item.get("value")) if isinstance(item, dict) else str(item) for item in items]


def _answer(answer: Mapping[str, Any], names: Sequence[str]) -> Verdict:
    person, status, named = word(answer.get("user_id")), str(answer.get("status") or ""), _names(answer)
    if status in _NOT_SUBMITTED:
        return Verdict(feedback=Feedback(shown=(), skipped=status), person=person)
    if len(named) == 1 and named[0].lower() in TIE and named[0] not in names:
        return Verdict(feedback=Feedback(shown=(), ranking=(tuple(range(len(names))),)), person=person)
    unknown = [name for name in named if name not in names]
    if unknown:
        raise Unusable("unknown_verdict", f"{unknown[0]!r} is none of {', '.join(names)}")
    places: dict[float, list[int]] = {}
    for place, name in enumerate(named):
        item = answer["value"][place] if isinstance(answer["value"], list) else None
        rank = number(item.get("rank"), "rank") if isinstance(item, dict) else None
        places.setdefault(place if rank is None else rank, []).append(names.index(name))
    ranking = [tuple(places[rank]) for rank in sorted(places)]
    if len(named) == 1:  # the better of all, in place of a ranking
        ranking += [tuple(k for k in range(len(names)) if k not in ranking[0])]
    return Verdict(feedback=Feedback(shown=(), ranking=tuple(ranking)), person=person)


def label_studio(row: Row, columns: Columns) -> Draft:
    """A task of Label Studio's JSON export, labelled with its Pairwise tag: `data` with `prompt` and the two texts
    (`first` and `second`; text1 and text2 in Label Studio's own template), and `annotations`.
    """
    data = object_of(get(row, {}, "data"), "data")
    names = {"first": "text1", "second": "text2", **columns}
    texts = [text_of(get(data, names, name), name) for name in ("first", "second")]
    said = [_annotation(item) for item in objects_of(get(row, {}, "annotations"), "annotations")]
    return judged_row(turns_of(get(data, columns, "prompt"), "prompt"), texts, said, row, columns)


def _annotation(annotation: Mapping[str, Any]) -> Verdict:
    by = annotation.get("completed_by")
    person = by.get("email") or by.get("id") if isinstance(by, dict) else by
    results = [item for item in objects_of(annotation.get("result") or [], "result") if item.get("type") == "pairwise"]
    if annotation.get("was_cancelled"):
        feedback = Feedback(shown=(0, 1), skipped="cancelled")
    elif not results:
        feedback = Feedback(shown=(0, 1), skipped="no_choice")
    else:
        side = object_of(results[0].get("value"), "value").get("selected")
        if side not in ("left", "right"):
            raise Unusable("unknown_verdict", f"selected: must be left or right, got {shown(side)}")
        feedback = Feedback(shown=(0, 1), ranking=((0,), (1,)) if side == "left" else ((1,), (0,)))
    at, seconds = word(annotation.get("created_at")), number(annotation.get("lead_time"), "lead_time")
    when = Provenance(labeled_at=at, seconds=seconds or 0.0) if at else None
    return Verdict(feedback=feedback, person=word(person), provenance=when)
