"""From what a labeler said (Feedback) to a verdict (Judgment) to what a reward model trains on (Preference).

One rule for all kinds: a pair for every two texts of which one was placed above the other, none for a tie. A ranking
of K responses gives K(K-1)/2 pairs (InstructGPT, section 3.2), and a corrected comparison of two gives three:
correction > better > worse.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Final

from cai.errors import LabelerError
from cai.types import Comparison, Feedback, Judgment, Pair, Preference, Provenance

__all__ = ["MAX_RESPONSES", "judgment_of", "own_pairs", "pairs_of", "preference_of", "rearranged"]

MAX_RESPONSES: Final = 9  # that a person can rank (InstructGPT, section 3.2: K = 4 to 9)
_MAX_STRENGTH: Final = 3
_MAX_RATING: Final = 7  # Likert 1 to 7 (InstructGPT, section 3.2)


def pairs_of(feedback: Feedback, num_responses: int, *, margins: Sequence[float] = ()) -> tuple[Pair, ...]:
    """The ordered pairs of `feedback` on `num_responses` responses, first < second, p = 1 or 0; a tie gives none.

    The correction has the index `num_responses`. It is above the response it was made of, and above every ranked one.
    `margins` are three rewards, by how much the first group is better when `strength` is 1, 2 or 3; they are set on the
    pairs of the first group with those below it. Without them, the default, strength changes no pair.

    Raises LabelerError when `feedback` contradicts itself, or names a response that is not there.
    """
    problem = _problem(feedback, num_responses)
    if problem is not None:
        raise LabelerError(f"feedback: {problem}")
    if margins and (len(margins) != _MAX_STRENGTH or not all(0 <= margin < math.inf for margin in margins)):
        raise LabelerError(f"margins: must be {_MAX_STRENGTH} rewards of 0 or more, for strength 1 to 3, got {margins}")
    place = {index: group for group, members in enumerate(feedback.ranking) for index in members}
    margin = margins[feedback.strength - 1] if margins and feedback.strength else 0.0
    pairs = [
        Pair(i, j, float(place[i] < place[j]), margin=0.0 if place[i] and place[j] else margin)
        for i, j in combinations(sorted(place), 2)
        if place[i] != place[j]
    ]
    if feedback.corrected is not None:
        pairs += [Pair(i, num_responses, 0.0) for i in sorted({*place, feedback.corrected})]
    return tuple(pairs)


def judgment_of(
    comparison: Comparison,
    feedback: Feedback,
    *,
    number: int,
    labeler: str,
    person: str,
    provenance: Provenance | None = None,
    margins: Sequence[float] = (),
) -> Judgment:
    """The judgment with id `<comparison.id>/<number>` that `feedback` amounts to; for `margins` see `pairs_of`.

    Without a pair it is an abstention: `feedback.skipped`, or `tie` when the ranked responses are all tied, or
    `not_compared` when fewer than two were ranked (ratings, flags or a critique alone). Raises LabelerError for
    feedback that `pairs_of` refuses, that says nothing, or whose correction is no new text.
    """
    problem = _problem(feedback, len(comparison.responses)) or _text_problem(comparison, feedback)
    if problem is not None:
        raise LabelerError(f"comparison {comparison.id!r}: feedback: {problem}")
    pairs = pairs_of(feedback, len(comparison.responses), margins=margins)
    return Judgment(
        id=f"{comparison.id}/{number}",
        comparison_id=comparison.id,
        labeler=labeler,
        person=person,
        pairs=pairs,
        abstained=None if pairs else _why_not(feedback),
        feedback=feedback,
        provenance=provenance,
    )


def preference_of(comparison: Comparison, judgment: Judgment) -> Preference:
    """What the reward model trains on: all pairs of one comparison in one group, a correction behind the responses."""
    if judgment.comparison_id != comparison.id or not judgment.pairs:
        problem = f"is about {judgment.comparison_id!r}" if judgment.pairs else f"abstained ({judgment.abstained})"
        raise LabelerError(f"comparison {comparison.id!r}: judgment {judgment.id!r} {problem}; it gives no preference")
    corrections: tuple[str, ...] = ()
    if judgment.feedback is not None and judgment.feedback.corrected is not None:
        corrections = (judgment.feedback.correction,)
    return Preference(
        id=comparison.id,
        prompt=comparison.prompt,
        responses=(*(response.text for response in comparison.responses), *corrections),
        pairs=judgment.pairs,
        labeler=judgment.labeler,
        num_corrections=len(corrections),
    )


def rearranged(judgment: Judgment, place: Sequence[int], *, comparison_id: str, number: int) -> Judgment:
    """The same judgment of the same texts in another order: response i of its comparison is `place[i]` of the one with
    `comparison_id`, whose judgment `number` it becomes. Where the order changes, `evidence`, whose indices only its
    labeler knows, is kept as it was under `evidence` beside the `place` that its indices have now.
    """
    name = f"{comparison_id}/{number}"
    if list(place) == list(range(len(place))):
        return replace(judgment, id=name, comparison_id=comparison_id)
    to = [*place, len(place)]  # the correction stays behind the responses
    pairs = sorted((_mapped(pair, to) for pair in judgment.pairs), key=lambda pair: (pair.first, pair.second))
    feedback = judgment.feedback
    if feedback is not None:
        back = sorted(range(len(place)), key=to.__getitem__)
        feedback = replace(
            feedback,
            shown=tuple(to[i] for i in feedback.shown),
            ranking=tuple(tuple(to[i] for i in group) for group in feedback.ranking),
            ratings=tuple(feedback.ratings[i] for i in back) if feedback.ratings else (),
            flags=tuple(feedback.flags[i] for i in back) if feedback.flags else (),
            corrected=None if feedback.corrected is None else to[feedback.corrected],
        )
    evidence: tuple[dict[str, object], ...] = judgment.evidence
    if evidence:
        evidence = ({"place": list(place), "evidence": list(evidence)},)
    return replace(
        judgment, id=name, comparison_id=comparison_id, pairs=tuple(pairs), feedback=feedback, evidence=evidence
    )


def own_pairs(judgment: Judgment) -> tuple[Pair, ...]:
    """The pairs of the comparison's own responses: what labelers can agree on, as every correction is another text."""
    if judgment.feedback is None or judgment.feedback.corrected is None:
        return judgment.pairs
    correction = max(pair.second for pair in judgment.pairs)  # it has a pair, and the highest index
    return tuple(pair for pair in judgment.pairs if pair.second != correction)


def _mapped(pair: Pair, to: Sequence[int]) -> Pair:
    first, second = to[pair.first], to[pair.second]
    if first < second:
        return replace(pair, first=first, second=second)
    return replace(pair, first=second, second=first, p=1 - pair.p)


def _why_not(feedback: Feedback) -> str:
    tied = any(len(group) > 1 for group in feedback.ranking)
    return feedback.skipped or ("tie" if tied else "not_compared")


# --- what feedback may not be -----------------------------------------------------------------------------------------


def _problem(feedback: Feedback, num_responses: int) -> str | None:
    """What is wrong with `feedback` on any `num_responses` responses, in words, or None."""
    known = range(num_responses)
    ranked = [index for group in feedback.ranking for index in group]
    named = [*ranked, *feedback.shown, *([] if feedback.corrected is None else [feedback.corrected])]
    outside = [index for index in named if index not in known]
    if not 2 <= num_responses <= MAX_RESPONSES:
        return f"a comparison has 2 to {MAX_RESPONSES} responses, got {num_responses}"
    if outside:
        return f"response {outside[0]} is not there; responses are 0 to {num_responses - 1}"
    if len(set(ranked)) < len(ranked) or not all(feedback.ranking):
        return f"ranking: every response stands in one group, and no group is empty, got {feedback.ranking}"
    if feedback.shown and sorted(feedback.shown) != list(known):
        return f"shown: must hold every response once, or nothing where the order is not known, got {feedback.shown}"
    if feedback.strength not in range(_MAX_STRENGTH + 1) or (feedback.strength and len(feedback.ranking) < 2):
        return f"strength: must be 0 to {_MAX_STRENGTH}, and 0 without two groups, got {feedback.strength}"
    for name, values in (("ratings", feedback.ratings), ("flags", feedback.flags)):
        if values and len(values) != num_responses:
            return f"{name}: must go by response, {num_responses} in all, got {len(values)}"
    if not all(0 <= rating <= _MAX_RATING for rating in feedback.ratings):
        return f"ratings: must be 1 to {_MAX_RATING}, or 0 where not given, got {feedback.ratings}"
    return _whole_problem(feedback)


def _whole_problem(feedback: Feedback) -> str | None:
    """What does not go together."""
    if (feedback.corrected is None) != (not feedback.correction.strip()):
        return f"corrected and correction go together, got {feedback.corrected} and {feedback.correction!r}"
    if feedback.skipped is not None and (not feedback.skipped or feedback.ranking or feedback.correction):
        return f"skipped: must say why, and has no ranking or correction beside it, got {feedback.skipped!r}"
    said = (feedback.ranking, feedback.correction, feedback.skipped, feedback.critique.strip())
    if not any(said) and not any(feedback.ratings) and not any(feedback.flags):
        return "it says nothing; a labeler who has no verdict skips, and says why"
    return None


def _text_problem(comparison: Comparison, feedback: Feedback) -> str | None:
    for index, response in enumerate(comparison.responses):
        if feedback.corrected is not None and response.text.strip() == feedback.correction.strip():
            return f"correction: must be another text than the responses, but is response {index}"
    return None
