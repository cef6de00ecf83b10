"""A comparison with the labels that it came with: how one is made of a row, whatever the row's format."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cai.codec import shown
from cai.datasets.rows import Unusable
from cai.errors import LabelerError
from cai.labelers.feedback import MAX_RESPONSES, judgment_of, preference_of, rearranged
from cai.records import fingerprint
from cai.types import Comparison, Feedback, Judgment, Pair, Prompt, Provenance, Response, Turn

__all__ = [
    "Draft",
    "Key",
    "Labelled",
    "Verdict",
    "alternating",
    "best_response",
    "chosen_draft",
    "key_of",
    "labelled_of",
    "matching",
    "merged",
    "only_response",
    "turns_of",
]

Key = tuple[tuple[Turn, ...], tuple[str, ...]]  # the dialogue and its responses, sorted: the same comparison

_ROLES: Final = ("system", "user", "assistant")
EMPTY_TURN: Final = "empty_turn"
IDENTICAL: Final = "identical_responses"
NO_RESPONSE: Final = "no_final_response"
NO_USER: Final = "no_user_turn_at_the_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A comparison and its judgments; `rows` are the numbers of the rows that said so."""

    comparison: Comparison
    judgments: tuple[Judgment, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One label of a row: what was said (`feedback`), or a probability (`pair`)."""

    feedback: Feedback | None = None
    pair: Pair | None = None
    person: str = ""
    labeler: str = ""
    provenance: Provenance | None = None
    evidence: tuple[dict[str, object], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a format reads out of a row; `models` wrote the responses, where that is known."""

    turns: tuple[Turn, ...]
    responses: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    models: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    user: str = ""
    joined: bool = False


# --- dialogues --------------------------------------------------------------------------------------------------------


def turns_of(value: object, name: str) -> list[Turn]:
    """The turns of a prompt: a text, which is the user's, or messages with `role` and `content`."""
    if isinstance(value, str):
        return [Turn("user", value)]
    if not isinstance(value, list) or not value:
        raise Unusable("not_a_dialogue", f"{name}: must be a text or messages, got {shown(value)}")
    turns = []
    for message in value:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in _ROLES or not isinstance(content, str):
            wanted = f"messages have a role ({', '.join(_ROLES)}) and a content that is text"
            raise Unusable("not_a_dialogue", f"{name}: {wanted}, got {shown(message)}")
        turns.append(Turn(role, content))
    return turns


def alternating(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Neighbours of the same role joined by an empty line, as chat templates want roles to alternate."""
    by_role = itertools.groupby(turns, key=lambda turn: turn.role)
    return tuple(Turn(role, "\n\n".join(turn.content for turn in same)) for role, same in by_role)


def only_response(turns: Sequence[Turn]) -> str:
    """The text of what must be one turn of the assistant's."""
    if not turns or turns[-1].role != "assistant":
        raise Unusable(NO_RESPONSE, f"it ends with {turns[-1].role if turns else 'the prompt'}")
    if len(turns) > 1:
        raise Unusable("response_of_several_turns", f"{len(turns)} turns")
    return turns[0].content


# --- from a row to a labelled comparison ------------------------------------------------------------------------------


def chosen_draft(turns: Sequence[Turn], chosen: str, rejected: str, **more: Any) -> Draft:
    """A draft of a row that names the better response. Its order is that of the texts' hashes: in the file the chosen
    one always stands first, and a reader could learn that in place of what the people preferred.
    """
    chosen_first = fingerprint(chosen) < fingerprint(rejected)
    ranking = ((0,), (1,)) if chosen_first else ((1,), (0,))
    verdict = {name: more.pop(name) for name in ("person", "labeler") if name in more}
    p, rest = more.pop("p_chosen", None), {name: more.pop(name, None) for name in ("weight", "margin")}
    numbers = {name: value for name, value in rest.items() if value is not None}
    if p is None and not numbers:
        said = Verdict(feedback=Feedback(shown=(), ranking=ranking), **verdict)
    else:
        p = 1.0 if p is None else p
        said = Verdict(pair=Pair(0, 1, p if chosen_first else 1 - p, **numbers), **verdict)
    texts = (chosen, rejected) if chosen_first else (rejected, chosen)
    turns = tuple(turns)
    return Draft(turns=turns, responses=texts, verdicts=(said,), **more)


def labelled_of(draft: Draft, row: int, *, prefix: str, source: str, tags: Sequence[str]) -> Labelled:
    """The comparison and judgments of a draft. Ids hang on texts alone: the same comparison has the same id in every
    file and place. Raises Unusable.
    """
    problem = _problem(draft)
    if problem is not None:
        raise Unusable(*problem)
    turns = [[turn.role, turn.content] for turn in draft.turns]
    own = (*tags, *(tag for tag in draft.tags if tag not in tags))
    prompt = Prompt(
        id=f"{prefix}-{fingerprint(turns)[:12]}", turns=draft.turns, tags=own, source=source, user=draft.user
    )
    name = f"{prefix}-{fingerprint([turns, sorted(draft.responses)])[:16]}"
    models = draft.models or ("",) * len(draft.responses)
    responses = [
        Response(id=f"{name}/{k}", prompt_id=prompt.id, text=text, model=model, num_tokens=0, finished=True)
        for k, (text, model) in enumerate(zip(draft.responses, models, strict=True))
    ]
    comparison = Comparison(id=name, prompt=prompt, responses=tuple(responses))
    judgments = [_judgment(comparison, verdict, number) for number, verdict in enumerate(draft.verdicts)]
    return Labelled(comparison=comparison, judgments=tuple(judgments), rows=(row,))


def _problem(draft: Draft) -> tuple[str, str] | None:
    """Why a draft cannot serve: (reason, detail)."""
    texts = [*(turn.content for turn in draft.turns), *draft.responses]
    if not draft.turns or draft.turns[-1].role != "user":
        return NO_USER, f"the prompt ends with {draft.turns[-1].role if draft.turns else 'nothing'}"
    if not all(text.strip() for text in texts):
        return EMPTY_TURN, "a turn or a response has no text"
    if not 2 <= len(draft.responses) <= MAX_RESPONSES:
        return "number_of_responses", f"{len(draft.responses)}; 2 to {MAX_RESPONSES} can be compared"
    if len(set(draft.responses)) < len(draft.responses):
        return IDENTICAL, "two responses have the same text"
    if not draft.verdicts:
        return "no_label", "nobody judged it"
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return "not_unicode", "half of a surrogate pair, which no file or tokenizer can hold"
    return None


def _judgment(comparison: Comparison, verdict: Verdict, number: int) -> Judgment:
    who: Any = {"labeler": verdict.labeler or "recorded", "person": verdict.person}
    if verdict.feedback is not None:
        try:
            found = judgment_of(comparison, verdict.feedback, number=number, provenance=verdict.provenance, **who)
        except LabelerError as error:
            raise Unusable("contradictory_label", str(error).partition("feedback: ")[2]) from None
        return replace(found, evidence=verdict.evidence)
    assert verdict.pair is not None
    pair = verdict.pair
    if not (0 <= pair.p <= 1 and pair.weight > 0 and pair.margin >= 0):
        raise Unusable("contradictory_label", f"p in [0, 1], weight above 0, margin 0 or more, got {pair}")
    return Judgment(
        id=f"{comparison.id}/{number}",
        comparison_id=comparison.id,
        pairs=(pair,),
        provenance=verdict.provenance,
        evidence=verdict.evidence,
        **who,
    )


# --- several rows of the same comparison ------------------------------------------------------------------------------


def key_of(comparison: Comparison) -> Key:
    """What makes two comparisons the same: dialogue and texts, in whatever order the responses stand."""
    return comparison.prompt.turns, tuple(sorted(response.text for response in comparison.responses))


def matching(source: Comparison, target: Comparison) -> list[int]:
    """For each response of `source` the index of the same text in `target`; both have the same key."""

    def order(comparison: Comparison) -> list[int]:
        return sorted(range(len(comparison.responses)), key=lambda k: (comparison.responses[k].text, k))

    place = dict(zip(order(source), order(target), strict=True))
    return [place[k] for k in range(len(source.responses))]


def merged(labelled: Iterable[Labelled]) -> list[Labelled]:
    """Every comparison once, in the order of first sight, with the judgments of all its rows; judgments get the order
    of the first row's responses, and are numbered anew where there are several.
    """
    found: dict[Key, Labelled] = {}
    for more in labelled:
        key = key_of(more.comparison)
        one = found.get(key)
        if one is None:
            found[key] = more
            continue
        place, name, start = matching(more.comparison, one.comparison), one.comparison.id, len(one.judgments)
        added = [
            rearranged(judgment, place, comparison_id=name, number=number)
            for number, judgment in enumerate(more.judgments, start=start)
        ]
        found[key] = replace(one, judgments=(*one.judgments, *added), rows=(*one.rows, *more.rows))
    return list(found.values())


def best_response(labelled: Labelled) -> str | None:
    """The response (or correction) that the first judgment puts above another and below none, the first of those; None
    when it puts none above another.
    """
    judgment = labelled.judgments[0] if labelled.judgments else None
    if judgment is None:
        return None
    indices = {index for pair in judgment.pairs for index in (pair.first, pair.second)}
    beaten = {pair.second if pair.p > 0.5 else pair.first for pair in judgment.pairs if pair.p != 0.5}
    if not beaten:
        return None
    texts = preference_of(labelled.comparison, judgment).responses
    return next((texts[index] for index in sorted(indices - beaten)), None)
