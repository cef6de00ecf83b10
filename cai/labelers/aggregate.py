"""Several judgments of one comparison become its label: the first one, the majority of them, or their mean."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from cai.errors import LabelerError, unknown
from cai.labelers.feedback import own_pairs
from cai.types import Comparison, Judgment, Pair, Preference

__all__ = ["Aggregate", "Labels", "check_aggregate", "labels_of", "preference_from"]

Aggregate = Literal["first", "majority", "mean"]
_HOW: Final = get_args(Aggregate)


@dataclass(frozen=True, slots=True)
class Labels:
    """The label of every comparison that was judged, by its id, in order; `num_tied` counts the pairs on which as many
    judgments are for one response as for the other, whose label is even (p = 1/2).
    """

    by_comparison: dict[str, Judgment]
    num_tied: int


def check_aggregate(how: str) -> None:
    """Raise LabelerError for a rule that does not exist."""
    if how not in _HOW:
        raise LabelerError(f"aggregate: {unknown('rule', how, _HOW)}")


def labels_of(judgments: Iterable[Judgment], how: Aggregate) -> Labels:
    """`first` takes the first judgment of a comparison as it is, an abstention too. `majority` counts, for every pair,
    the judgments that prefer either response (InstructGPT's held-out labels, Stiennon's modal label), and gives p = 1,
    0, or 1/2 for a tie; `mean` is the mean of p, so that disagreement makes a soft label. Both go by those who have
    a verdict on the pair, and abstain when nobody has one.

    An aggregated judgment names all its labelers, joined by +, and holds the evidence of all.
    """
    given: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        given.setdefault(judgment.comparison_id, []).append(judgment)
    if how == "first":
        return Labels({name: own[0] for name, own in given.items()}, 0)
    labels, num_tied = {}, 0
    for name, own in given.items():
        with_verdict = [judgment for judgment in own if judgment.pairs]
        votes: dict[tuple[int, int], list[Pair]] = {}
        for judgment in with_verdict:
            for pair in own_pairs(judgment):
                votes.setdefault((pair.first, pair.second), []).append(pair)
        pairs = [_together(ballots, how) for _, ballots in sorted(votes.items())]
        num_tied += sum(
            pair.p == 0.5 and any(vote.p != 0.5 for vote in votes[pair.first, pair.second]) for pair in pairs
        )
        # nobody has a verdict but by a correction, or nobody at all: then there is nothing to put together
        labels[name] = _whole(with_verdict, tuple(pairs), how) if pairs else (with_verdict or own)[0]
    return Labels(labels, num_tied)


def preference_from(comparison: Comparison, judgments: Sequence[Judgment], label: Judgment) -> Preference:
    """What the reward model trains on, where `label` came of these `judgments` of the comparison: its pairs, and every
    correction that somebody wrote, as one more response with that person's own pairs.
    """
    texts = [response.text for response in comparison.responses]
    pairs = list(own_pairs(label))
    for judgment in judgments:
        if judgment.feedback is not None and judgment.feedback.corrected is not None:
            own = own_pairs(judgment)
            pairs += [replace(pair, second=len(texts)) for pair in judgment.pairs if pair not in own]
            texts.append(judgment.feedback.correction)
    return Preference(
        id=comparison.id,
        prompt=comparison.prompt,
        responses=tuple(texts),
        pairs=tuple(pairs),
        labeler=label.labeler,
        num_corrections=len(texts) - len(comparison.responses),
    )


def _together(votes: Sequence[Pair], how: Aggregate) -> Pair:
    """One pair of several people's. Margins count for and against; weights are averaged."""
    sides = [(vote.p > 0.5) - (vote.p < 0.5) for vote in votes]
    lead = sum(sides)
    p = (1 + (lead > 0) - (lead < 0)) / 2 if how == "majority" else sum(vote.p for vote in votes) / len(votes)
    margin = sum(side * vote.margin for side, vote in zip(sides, votes, strict=True)) / len(votes)
    return replace(
        votes[0],
        p=p,
        weight=sum(vote.weight for vote in votes) / len(votes),
        margin=max(0.0, margin if p > 0.5 else -margin if p < 0.5 else 0.0),
    )


def _whole(judgments: Sequence[Judgment], pairs: tuple[Pair, ...], how: Aggregate) -> Judgment:
    first = judgments[0]
    return Judgment(
        id=f"{first.comparison_id}/{how}",
        comparison_id=first.comparison_id,
        labeler="+".join(dict.fromkeys(judgment.labeler for judgment in judgments)),
        person="",
        pairs=pairs,
        principle_ids=tuple(dict.fromkeys(name for judgment in judgments for name in judgment.principle_ids)),
        templates={name: sha for judgment in judgments for name, sha in judgment.templates.items()},
        evidence=tuple(row for judgment in judgments for row in judgment.evidence),
    )
