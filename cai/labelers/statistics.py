"""What can be said about a set of judgments without knowing who gave them: counts, agreement, position bias.

Everything returns plain JSON; a rate over nothing is None. Rows about both orders are found in a judgment's evidence
by their keys `pair`, `principle`, `shown` and `p` (the probability of the response that was shown first).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cai.labelers.feedback import own_pairs
from cai.types import Comparison, Judgment

__all__ = [
    "DECIDED",
    "between_people",
    "both_orders",
    "by_principle",
    "cohen_kappa",
    "first_judgments",
    "injected",
    "position",
    "principle_verdicts",
    "said",
    "served",
    "unanswered",
    "verdicts",
    "with_gold",
]

DECIDED = 0.1  # distance of p from 1/2, from which on a verdict is one
Gold = Mapping[str, Sequence[float]]  # comparison id -> gold score of each response


def first_judgments(judgments: Iterable[Judgment]) -> dict[str, Judgment]:
    """The first judgment of every comparison, by comparison id: the one that labels; later ones measure agreement."""
    first: dict[str, Judgment] = {}
    for judgment in judgments:
        first.setdefault(judgment.comparison_id, judgment)
    return first


def verdicts(judgments: Iterable[Judgment]) -> dict[str, Any]:
    """How many labels there are and how sure they are; every p counts once, in the comparison's response order.

    `num_neutralised` counts the judgments of which some text was shown with a marker of the prompt's format broken up.
    """
    judgments = list(judgments)
    p = [pair.p for judgment in judgments for pair in judgment.pairs]
    abstained = Counter(judgment.abstained for judgment in judgments if judgment.abstained)
    return {
        "num_pairs": len(p),
        "num_even": sum(x == 0.5 for x in p),
        "mean_p": _mean(p),
        "mean_distance": _mean([abs(x - 0.5) for x in p]),
        "num_abstained": sum(abstained.values()),
        "abstained": dict(sorted(abstained.items())),
        "num_neutralised": sum(any("neutralised" in row for row in j.evidence) for j in judgments),
    }


def injected(judgments: Iterable[Judgment]) -> dict[str, int] | None:
    """How many pairs of all judgments were turned over on purpose (`cai.labelers.noisy`); None where nobody did so."""
    flips = [row["flipped"] for judgment in judgments for row in judgment.evidence if "flipped" in row]
    return {"num_pairs": len(flips), "num_flipped": sum(map(bool, flips))} if flips else None


def said(judgments: Iterable[Judgment]) -> dict[str, Any] | None:
    """What people said besides who is better, in numbers; None when nobody said anything by a page or a dataset.

    `ratings_agree` is how often the preferred of two rated responses has the higher rating, of those that differ.
    """
    given = [judgment for judgment in judgments if judgment.feedback is not None]
    if not given:
        return None
    found = [judgment.feedback for judgment in given if judgment.feedback is not None]
    ratings = [rating for one in found for rating in one.ratings if rating]
    differences = [
        (one.ratings[pair.first] - one.ratings[pair.second]) * (pair.p - 0.5)
        for judgment, one in zip(given, found, strict=True)
        for pair in own_pairs(judgment)
        if one.ratings and one.ratings[pair.first] and one.ratings[pair.second]
    ]
    return {
        "num": len(found),
        "num_with_ties": sum(any(len(group) > 1 for group in one.ranking) for one in found),
        "num_corrections": sum(bool(one.correction) for one in found),
        "num_critiques": sum(bool(one.critique.strip()) for one in found),
        "skipped": _counted(one.skipped for one in found if one.skipped),
        "strength": _counted(one.strength for one in found if one.strength),
        "flags": _counted(flag for one in found for flags in one.flags for flag in flags),
        "ratings": _counted(ratings),
        "mean_rating": _mean(ratings),
        "ratings_agree": _mean([float(difference > 0) for difference in differences if difference]),
        "instructions": _counted(one.instructions for one in found if one.instructions),
    }


def _counted(values: Iterable[object]) -> dict[str, int]:
    return {str(value): number for value, number in sorted(Counter(values).items(), key=lambda item: str(item[0]))}


def both_orders(judgment: Judgment) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """Evidence rows of the same pair and principle, shown in one order and in the other."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in judgment.evidence:
        if "shown" not in row or row.get("p") is None:
            continue
        shown: Any = row["shown"]
        other = rows.get((row["principle"], shown[1], shown[0]))
        if other is not None:
            yield other, row
        rows[(row["principle"], shown[0], shown[1])] = row


def position(judgments: Iterable[Judgment]) -> dict[str, Any]:
    """Position bias before the orders are averaged: how often the answers prefer the same position both times
    (Lee et al. 2023), and the mean probability of whichever response was shown first (1/2 when there is no bias).

    A judge that cannot tell the responses apart shows its bias, however slight, on every such pair; so the same is
    given for decided questions, where p is at least 0.1 from 1/2 in one order or the other.
    """
    same, decided, p_first = [], [], []
    for judgment in judgments:
        for one, other in both_orders(judgment):
            p, q = float(one["p"]), float(other["p"])
            same.append(float((p - 0.5) * (q - 0.5) > 0))
            if max(abs(p - 0.5), abs(q - 0.5)) >= DECIDED:
                decided.append(same[-1])
            p_first += [p, q]
    return {
        "num_questions": len(same),
        "same_position": _mean(same),
        "num_decided": len(decided),
        "same_position_decided": _mean(decided),
        "mean_p_shown_first": _mean(p_first),
    }


def unanswered(judgments: Iterable[Judgment]) -> list[dict[str, Any]]:
    """A row for every question of the evidence that has no probability: `reason` is that of the server's failure, or
    `ill_formed_answer` where the model said something else than an option.
    """
    rows: list[dict[str, Any]] = []
    for judgment in judgments:
        for row in judgment.evidence:
            if "p" in row and row["p"] is None:
                kept = ("pair", "principle", "shown", "detail", "attempts")
                reason = row.get("failed") or "ill_formed_answer"
                own = {str(key): value for key, value in row.items() if key in kept}
                rows.append({"judgment_id": judgment.id, "reason": reason, **own})
    return rows


def served(judgments: Sequence[Judgment]) -> dict[str, Any] | None:
    """What servers did for these judgments: how they answered, how often they were asked, what it cost (USD), and the
    questions without an answer, by reason. None when no server was asked.
    """
    parts = [judgment.provenance for judgment in judgments if judgment.provenance and judgment.provenance.mode]
    if not parts:
        return None
    reasons = Counter(row["reason"] for row in unanswered(judgments))
    return {
        "modes": dict(sorted(Counter(part.mode for part in parts).items())),
        "num_attempts": sum(part.num_attempts for part in parts),
        "cost": sum(part.cost for part in parts),
        "num_unanswered": reasons.total(),
        "unanswered": dict(sorted(reasons.items())),
    }


def between_people(judgments: Iterable[Judgment]) -> dict[str, Any]:
    """Agreement of the first two people that judged the same comparison, over its pairs, with Cohen's kappa.

    Even verdicts (p = 1/2) are left out and counted: they are comparisons of identical texts, where a preference
    would be made up; to count them as agreement would raise the rate by however often a policy repeats itself.
    """
    by_comparison: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        by_comparison[judgment.comparison_id].append(judgment)
    first: list[bool] = []
    second: list[bool] = []
    num_even = 0
    for given in by_comparison.values():
        if len(given) < 2:
            continue
        other = {(pair.first, pair.second): pair.p for pair in own_pairs(given[1])}
        for pair in own_pairs(given[0]):
            q = other.get((pair.first, pair.second))
            if q is None:
                continue
            if pair.p == 0.5 or q == 0.5:
                num_even += 1
                continue
            first.append(pair.p > 0.5)
            second.append(q > 0.5)
    agreement = _mean([float(a == b) for a, b in zip(first, second, strict=True)])
    return {
        "num_pairs": len(first),
        "num_even": num_even,
        "agreement": agreement,
        "kappa": cohen_kappa(first, second),
    }


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> float | None:
    """(p_o - p_e) / (1 - p_e) with p_e = sum_k p1k p2k (Cohen 1960); None for no items, or when chance explains all.

    >>> cohen_kappa([True, True, False, False], [True, False, False, False])
    0.5
    """
    if not first:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    p, q = sum(first) / len(first), sum(second) / len(second)
    expected = p * q + (1 - p) * (1 - q)
    return (observed - expected) / (1 - expected) if expected < 1 else None


def with_gold(comparisons: Sequence[Comparison], judgments: Mapping[str, Judgment], gold: Gold) -> dict[str, Any]:
    """How often the preferred response is the one with the higher gold score, over all pairs, by tag and by principle.

    Pairs with equal gold, or without (NaN), are left out and counted; an even verdict (p = 1/2) counts one half.
    Measurement only.
    """
    hits: list[float] = []
    by_tag: dict[str, list[float]] = defaultdict(list)
    by_principle: dict[str, list[float]] = defaultdict(list)
    num_equal = 0
    for comparison in comparisons:
        judgment = judgments.get(comparison.id)
        for pair in own_pairs(judgment) if judgment else ():
            difference = gold[comparison.id][pair.first] - gold[comparison.id][pair.second]
            if difference == 0 or math.isnan(difference):
                num_equal += 1
                continue
            hit = 0.5 if pair.p == 0.5 else float((pair.p > 0.5) == (difference > 0))
            hits.append(hit)
            for tag in comparison.prompt.tags:
                by_tag[tag].append(hit)
            for principle_id in judgment.principle_ids if judgment else ():
                by_principle[principle_id].append(hit)
    return {
        "num_pairs": len(hits),
        "num_equal": num_equal,
        "agreement": _mean(hits),
        "by_tag": {tag: _rate(values) for tag, values in sorted(by_tag.items())},
        "by_principle": {name: _rate(values) for name, values in sorted(by_principle.items())},
    }


def principle_verdicts(judgment: Judgment) -> Iterator[tuple[str, tuple[int, int], float]]:
    """(principle, pair, p of the pair's first response) of every principle's own verdict: orders averaged, without
    those that were ill-formed in some order, before principles are averaged and before anything is clamped.
    """
    asked: dict[tuple[str, tuple[int, int]], list[float | None]] = defaultdict(list)
    for row in judgment.evidence:
        if "shown" in row and "principle" in row:
            pair: Any = row["pair"]
            shown: Any = row["shown"]
            p: Any = row.get("p")
            first = p if p is None or shown[0] == pair[0] else 1 - p
            asked[str(row["principle"]), (pair[0], pair[1])].append(first)
    for (principle, pair), answers in asked.items():
        whole = [p for p in answers if p is not None]
        if len(whole) == len(answers):
            yield principle, pair, sum(whole) / len(whole)


def by_principle(labels: Iterable[Judgment], gold: Gold | None) -> dict[str, dict[str, Any]]:
    """What each principle said by itself: on how many pairs, how decidedly, how often as the label that came of all of
    them, and (with `gold`) how often as gold. Even verdicts and equal gold are left out of the last two.
    """
    distances: dict[str, list[float]] = defaultdict(list)
    as_label: dict[str, list[float]] = defaultdict(list)
    as_gold: dict[str, list[float]] = defaultdict(list)
    for judgment in labels:
        label = {(pair.first, pair.second): pair.p for pair in judgment.pairs}
        for principle, (i, j), p in principle_verdicts(judgment):
            distances[principle].append(abs(p - 0.5))
            together = label.get((i, j), 0.5)
            difference = gold[judgment.comparison_id][i] - gold[judgment.comparison_id][j] if gold else 0.0
            if p != 0.5 and together != 0.5:
                as_label[principle].append(float((p > 0.5) == (together > 0.5)))
            if p != 0.5 and difference != 0 and not math.isnan(difference):
                as_gold[principle].append(float((p > 0.5) == (difference > 0)))
    return {
        principle: {
            "num_pairs": len(found),
            "mean_distance": _mean(found),
            "as_label": _mean(as_label[principle]),
            "as_gold": _mean(as_gold[principle]),
        }
        for principle, found in sorted(distances.items())
    }


def _rate(hits: Sequence[float]) -> dict[str, Any]:
    return {"num_pairs": len(hits), "agreement": _mean(hits)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
