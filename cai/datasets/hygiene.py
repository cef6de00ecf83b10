"""Prompts as InstructGPT cleans them (Ouyang et al. 2022, section 3.2 and appendix A): no long common prefix twice, at
most so many prompts of one user, and personal data replaced. What is left out or changed is counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cai.datasets.labelled import Labelled
from cai.datasets.pii import screen
from cai.datasets.rows import Unusable
from cai.errors import ConfigError, DataError
from cai.types import Judgment, LeftOut, Turn

__all__ = ["PREFIX", "USER", "check_hygiene", "screened", "thinned"]

PREFIX = "shared_prefix"
USER = "over_max_per_user"


def check_hygiene(dedup_prefix: int | None, max_per_user: int | None) -> None:
    """Raise ConfigError for numbers that mean nothing."""
    for name, value in (("dedup_prefix", dedup_prefix), ("max_per_user", max_per_user)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: must be 1 or more, or null, got {value}")


def thinned(
    labelled: Sequence[Labelled], *, dedup_prefix: int | None = None, max_per_user: int | None = None
) -> tuple[list[Labelled], list[LeftOut]]:
    """What is kept, in order, and the rows that are left out. The first of a kind is kept; comparisons of one and the
    same dialogue are no duplicates: they stay or go together.

    `dedup_prefix`: dialogues of which the first so many characters are equal (spaces and case aside) are one.
    `max_per_user`: dialogues of one user, at most; those of nobody in particular are not counted. DataError when no
    dialogue has a user.
    """
    check_hygiene(dedup_prefix, max_per_user)
    if max_per_user and labelled and not any(one.comparison.prompt.user for one in labelled):
        raise DataError(f"max_per_user: is {max_per_user}, but no row says who the user is (column 'user')")
    verdicts: dict[tuple[Turn, ...], tuple[str, str] | None] = {}
    first_row: dict[str, int] = {}
    num_of_user: Counter[str] = Counter()
    kept, left_out = [], []
    for one in labelled:
        turns, user = one.comparison.prompt.turns, one.comparison.prompt.user
        if turns not in verdicts:
            start = _start(turns, dedup_prefix) if dedup_prefix else ""
            if dedup_prefix and start in first_row:
                verdicts[turns] = (PREFIX, f"the first {dedup_prefix} characters are those of row {first_row[start]}")
            elif max_per_user and user and num_of_user[user] == max_per_user:
                verdicts[turns] = (USER, f"user {user!r} has {max_per_user} prompts before it")
            else:
                verdicts[turns] = None
                first_row[start] = one.rows[0]
                num_of_user[user] += 1
        reason = verdicts[turns]
        if reason is None:
            kept.append(one)
        else:
            left_out += [LeftOut(row=row, reason=reason[0], detail=reason[1]) for row in one.rows]
    return kept, left_out


def _start(turns: Sequence[Turn], num: int) -> str:
    """The first `num` characters of a dialogue, by which it is known; a shorter one is known by all of it."""
    text = " ".join(" ".join(turn.content for turn in turns).split()).casefold()
    return text[:num] if len(text) >= num else f"{text}\0"


def screened(labelled: Labelled, names: dict[str, str]) -> tuple[Labelled, Counter[str]]:
    """The same without what looks like personal data (`cai.datasets.pii`), and how much of which kind was replaced: in
    turns, responses, corrections, critiques, reasons and evidence. Users and people become `person-1`, `person-2`, ...
    in the order in which they appear; `names` has those that were met before, and gets those that were not.

    Raises Unusable when responses are no longer different.
    """
    found: Counter[str] = Counter()

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            text, kinds = screen(value)
            found.update(kinds)
            return text
        if isinstance(value, Mapping):
            return {key: clean(item) for key, item in value.items()}
        return [clean(item) for item in value] if isinstance(value, list | tuple) else value

    def pseudonym(name: str) -> str:
        return names.setdefault(name, f"person-{len(names) + 1}") if name else ""

    prompt = labelled.comparison.prompt
    turns = tuple(Turn(turn.role, clean(turn.content)) for turn in prompt.turns)
    responses = tuple(replace(response, text=clean(response.text)) for response in labelled.comparison.responses)
    if len({response.text for response in responses}) < len({r.text for r in labelled.comparison.responses}):
        raise Unusable("identical_after_screening", "two responses differ in personal data alone")

    def cleaned(judgment: Judgment) -> Judgment:
        said = judgment.feedback
        if said is not None:
            texts = {name: clean(getattr(said, name)) for name in ("correction", "critique", "skipped")}
            said = replace(said, **texts)
        return replace(
            judgment,
            person=pseudonym(judgment.person),
            feedback=said,
            abstained=clean(judgment.abstained),
            evidence=tuple(map(clean, judgment.evidence)),
        )

    comparison = replace(
        labelled.comparison,
        prompt=replace(prompt, turns=turns, user=pseudonym(prompt.user)),
        responses=responses,
    )
    return replace(labelled, comparison=comparison, judgments=tuple(map(cleaned, labelled.judgments))), found
