"""Who labelled what, how sure they were, and how far labelers agree: with each other, with themselves, with gold.

A comparison's label is what the run's label stage made of its judgments (`aggregate`); further ones measure agreement.
A pair counts as agreement when both prefer the same response; even verdicts (p = 1/2, as for two identical texts) and
pairs of equal gold are left out.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from cai.labelers.feedback import own_pairs
from cai.labelers.statistics import both_orders
from cai.report.agreement import Agreement, Estimator, human_ceiling
from cai.report.formulas import wilson
from cai.report.judged import Judged, Key, key_of
from cai.report.statistics import Bootstrap, Estimate

__all__ = ["ArmLabels", "Labels", "Position", "labels_of_arms", "prompts_by_seed", "read_labels"]

NUM_BARS: Final = 20  # of the histogram of label probabilities

Rows = dict[int, list[tuple[str, float]]]  # per seed: (prompt id, value)


@dataclass(frozen=True, slots=True)
class Position:
    """The AI labeler asked in both orders: bias before averaging, and what averaging does to being right.

    `same_position` is the share of questions where the same position wins in both orders; `shown_first` the mean
    probability of what is shown first (1/2 without bias); `after` the mean averaged probability of the response that
    was sampled first (1/2 without bias). `one_order` and `averaged` are agreement with gold.
    """

    same_position: Estimate
    shown_first: Estimate
    after: Estimate | None
    one_order: Estimate | None
    averaged: Estimate | None


@dataclass(frozen=True, slots=True)
class ArmLabels:
    """The labels of one arm over its seeds."""

    arm: str
    labeler: str
    num_comparisons: int
    num_labelled: int
    num_pairs: int
    num_even: int
    abstained: dict[str, int]
    num_people: int
    margin: Estimate | None
    gold: Agreement | None
    people: Agreement | None
    ceiling: float | None
    position: Position | None
    histogram: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """All arms' labels, and the agreement of every two arms on the comparisons they share; `apart` are every two that
    in some seed (or all) labelled different responses, which is then not counted.
    """

    arms: tuple[ArmLabels, ...]
    between: tuple[Agreement, ...]
    apart: tuple[tuple[str, str], ...]
    has_gold: bool


def read_labels(arms: Mapping[str, Mapping[int, Judged]], bootstrap: Bootstrap) -> Labels | None:
    """The figures of the labels of every arm; None when no run has labels."""
    return labels_of_arms(arms, Estimator(bootstrap, prompts_by_seed(arms.values()))) if arms else None


def labels_of_arms(arms: Mapping[str, Mapping[int, Judged]], estimator: Estimator) -> Labels:
    """Every arm's figures, and the agreement of every two."""
    between = [_between(a, b, arms[a], arms[b], estimator) for a, b in combinations(arms, 2)]
    shared = {(a, b): arms[a].keys() & arms[b].keys() for a, b in combinations(arms, 2)}
    apart = tuple((a, b) for (a, b), seeds in shared.items() if len(_alike(arms[a], arms[b])) < len(seeds))
    found = tuple(_arm(arm, judged, estimator) for arm, judged in arms.items())
    return Labels(found, tuple(b for b in between if b is not None), apart, any(arm.gold for arm in found))


def prompts_by_seed(arms: Iterable[Mapping[int, Judged]]) -> dict[int, set[str]]:
    """All prompts of every seed, so that every figure shares the same draws."""
    found: dict[int, set[str]] = defaultdict(set)
    for judged in arms:
        for seed, one in judged.items():
            found[seed].update(one.prompts.values())
    return found


# --- one arm ----------------------------------------------------------------------------------------------------------


def _arm(arm: str, judged: Mapping[int, Judged], estimator: Estimator) -> ArmLabels:
    first = [j for one in judged.values() for j in one.by_comparison.values()]
    p = [pair.p for judgment in first for pair in judgment.pairs]
    abstained: dict[str, int] = defaultdict(int)
    for judgment in first:
        if judgment.abstained:
            abstained[judgment.abstained] += 1
    people = _people(judged, estimator)
    return ArmLabels(
        arm=arm,
        labeler=", ".join(sorted({j.labeler for j in first})),
        num_comparisons=len(first),
        num_labelled=sum(bool(j.pairs) for j in first),
        num_pairs=len(p),
        num_even=sum(x == 0.5 for x in p),
        abstained=dict(sorted(abstained.items())),
        num_people=len({j.person for one in judged.values() for j in one.judgments if j.person}),
        margin=estimator.mean(
            {s: [(one.prompt(k), abs(x - 0.5)) for k, x in one.labels()] for s, one in judged.items()}
        ),
        gold=estimator.agreement(arm, "gold", {s: list(_against_gold(one)) for s, one in judged.items()})
        or _counted_agreement(arm, {s: one.counted for s, one in judged.items() if one.counted}),
        people=people,
        ceiling=human_ceiling(people.raw.value) if people else None,
        position=_position(judged, estimator),
        histogram=_histogram(p),
    )


def _against_gold(one: Judged) -> Iterator[tuple[str, bool, bool]]:
    """(prompt, label prefers the first response, gold prefers it)."""
    for key, p in one.labels():
        difference = one.gold.get(key, 0.0)
        if p != 0.5 and difference != 0:
            yield one.prompt(key), p > 0.5, difference > 0


def _counted_agreement(arm: str, counted: Mapping[int, tuple[float, int]]) -> Agreement | None:
    """Agreement with gold where only the count is known: Wilson's interval, no kappa."""
    num = sum(n for _, n in counted.values())
    if not num:
        return None
    value = sum(rate * n for rate, n in counted.values()) / num
    low, high = wilson(value * num, num)
    raw = Estimate(value, low, high, num, num, {s: rate for s, (rate, _) in counted.items()}, "wilson")
    return Agreement(arm, "gold", raw, None, None)


def _people(judged: Mapping[int, Judged], estimator: Estimator) -> Agreement | None:
    """Agreement of the first two people who judged the same pair."""
    rows = {}
    for seed, one in judged.items():
        given: dict[Key, list[float]] = defaultdict(list)
        for judgment in one.judgments:
            for pair in own_pairs(judgment):
                given[key_of(judgment, pair)].append(pair.p)
        rows[seed] = [
            (one.prompt(k), ps[0] > 0.5, ps[1] > 0.5) for k, ps in given.items() if len(ps) > 1 and 0.5 not in ps[:2]
        ]
    return estimator.agreement("person", "person", rows)


def _position(judged: Mapping[int, Judged], estimator: Estimator) -> Position | None:
    same: Rows = defaultdict(list)
    shown: Rows = defaultdict(list)
    after: Rows = defaultdict(list)
    single: Rows = defaultdict(list)
    averaged: Rows = defaultdict(list)
    for seed, one in judged.items():
        for judgment in one.by_comparison.values():
            prompt = one.prompts.get(judgment.comparison_id, judgment.comparison_id)
            for row, other in both_orders(judgment):
                p, q = row["p"], other["p"]
                same[seed].append((prompt, float((p - 0.5) * (q - 0.5) > 0)))
                shown[seed] += [(prompt, p), (prompt, q)]
                difference = one.gold.get((judgment.comparison_id, *row["pair"]), 0.0)
                first = row["shown"][0] == row["pair"][0]
                mean = (p + 1 - q) / 2 if first else (q + 1 - p) / 2
                after[seed].append((prompt, mean))
                if difference != 0:
                    right = difference > 0
                    single[seed] += [(prompt, _right(p, right == first)), (prompt, _right(q, right != first))]
                    averaged[seed].append((prompt, _right(mean, right)))
    bias, preference = estimator.mean(same), estimator.mean(shown)
    if bias is None or preference is None:
        return None
    rest = [estimator.mean(rows) for rows in (after, single, averaged)]
    return Position(bias, preference, *rest)


def _right(p: float, should_prefer: bool) -> float:
    return 0.5 if p == 0.5 else float((p > 0.5) == should_prefer)


def _histogram(p: Sequence[float]) -> tuple[int, ...]:
    bars = [0] * NUM_BARS
    for x in p:
        bars[min(int(x * NUM_BARS), NUM_BARS - 1)] += 1
    return tuple(bars)


def _between(
    a: str, b: str, judged_a: Mapping[int, Judged], judged_b: Mapping[int, Judged], estimator: Estimator
) -> Agreement | None:
    """Two arms' labels on the same pairs of the same seed."""
    rows = {}
    for seed in _alike(judged_a, judged_b):
        other = dict(judged_b[seed].labels())
        rows[seed] = [
            (judged_a[seed].prompt(key), p > 0.5, other[key] > 0.5)
            for key, p in judged_a[seed].labels()
            if p != 0.5 and other.get(key, 0.5) != 0.5
        ]
    return estimator.agreement(a, b, rows)


def _alike(judged_a: Mapping[int, Judged], judged_b: Mapping[int, Judged]) -> list[int]:
    """The seeds in which both labelled the same responses."""
    return sorted(s for s in judged_a.keys() & judged_b.keys() if judged_a[s].sampled == judged_b[s].sampled)
