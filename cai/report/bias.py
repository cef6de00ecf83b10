"""What sways a labeler besides what it is asked: the place of a response, and its length.

A logistic regression of verdicts on place, length and gold (as RLAIF does for length, Lee et al. 2023, appendix) gives
each its share at equal others. Errors are robust to verdicts on one prompt being alike (Liang and Zeger 1986).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cai.labelers.feedback import own_pairs
from cai.report.agreement import Estimator
from cai.report.logistic import logistic, sigmoid
from cai.report.resampling import Floats
from cai.report.statistics import Estimate
from cai.types import Comparison, Judgment

__all__ = ["Bias", "Look", "biases", "fit", "looks"]

_Z: Final = 1.959964


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a pair of different texts: `p` is the verdict for the first of them, which was shown first when
    `first_shown` (None where nobody knows), and is longer by `doublings` and better by `gold` (None if not measured).
    """

    prompt: str
    p: float
    first_shown: bool | None
    doublings: float
    gold: float | None


@dataclass(frozen=True, slots=True)
class Bias:
    """How often the favoured side wins, and the log-odds that it adds at equal others: for place, of what is shown
    first; for length, of what is longer, per doubling. None where it cannot be told.
    """

    share: Estimate | None
    log_odds: Estimate | None


def looks(
    comparisons: Mapping[str, Comparison], judgments: Iterable[Judgment], gold: Mapping[tuple[str, int, int], float]
) -> Iterator[Look]:
    """What judgments have looked at. A model that was asked in both orders has looked twice, before averaging; people
    once each, in the order that their feedback or evidence tells.
    """
    for judgment in judgments:
        comparison = comparisons[judgment.comparison_id]
        for (i, j), p, known in _verdicts(judgment):
            texts = comparison.responses[i].text, comparison.responses[j].text
            if texts[0] != texts[1]:
                lengths = [math.log2(max(1, len(text))) for text in texts]
                better = gold.get((comparison.id, i, j), _negative(gold.get((comparison.id, j, i))))
                yield Look(comparison.prompt.id, p, known, lengths[0] - lengths[1], better)


def _verdicts(judgment: Judgment) -> Iterator[tuple[tuple[int, int], float, bool | None]]:
    """((i, j), p of i, whether i was shown first) of every look, the response that was shown first as i if known."""
    asked = [row for row in judgment.evidence if row.get("p") is not None and "shown" in row]
    if asked:
        for row in asked:
            shown: Any = row["shown"]
            p: Any = row["p"]
            yield (shown[0], shown[1]), p, True
        return
    order = list(judgment.feedback.shown) if judgment.feedback else []
    told: dict[tuple[int, int], Any] = {
        (row["pair"][0], row["pair"][1]): row["shown"]  # type: ignore[index]
        for row in judgment.evidence
        if "shown" in row and "pair" in row
    }
    for pair in own_pairs(judgment):
        i, j = pair.first, pair.second
        shown = told.get((i, j)) or ([k for k in order if k in (i, j)] if order else None)
        if shown is None:
            yield (i, j), pair.p, None
        else:
            yield (shown[0], shown[1]), pair.p if shown[0] == i else 1 - pair.p, True


def biases(seen: Mapping[int, Sequence[Look]], estimator: Estimator) -> tuple[Bias, Bias]:
    """(of place, of length), over the looks of every seed."""
    first = {s: [(look.prompt, look.p) for look in own if look.first_shown] for s, own in seen.items()}
    longer = {
        s: [(k.prompt, k.p if k.doublings > 0 else 1 - k.p) for k in own if k.doublings] for s, own in seen.items()
    }
    every = [(f"{seed}/{look.prompt}", look) for seed, own in seen.items() for look in own]
    columns = {
        "place": np.array([float(bool(look.first_shown)) for _, look in every]),
        "length": np.array([look.doublings for _, look in every]),
    }
    if all(look.gold is not None for _, look in every):
        columns["gold"] = np.array([look.gold or 0.0 for _, look in every])
    names = [name for name, column in columns.items() if column.any()]
    found = fit(
        np.column_stack([columns[name] for name in names]) if names else np.zeros((len(every), 0)),
        np.array([look.p for _, look in every]),
        [prompt for prompt, _ in every],
    )
    log_odds = dict(zip(names, found, strict=True)) if found else {}
    return (
        Bias(estimator.mean(first), log_odds.get("place")),
        Bias(estimator.mean(longer), log_odds.get("length")),
    )


def fit(columns: Floats, outcome: Floats, clusters: Sequence[str]) -> list[Estimate] | None:
    """Coefficients (C) of a logistic regression without intercept of `outcome` (N, in [0, 1]; soft ones count as they
    are) on `columns` (N, C), with 95 % intervals that let outcomes of one cluster be alike.

    None when there is no finite answer: too few rows, columns that say the same, or one that decides by itself.
    """
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    num, size = columns.shape
    if not size or len(names) <= size:
        return None
    beta = logistic(columns, outcome)
    if beta is None:
        return None
    p = sigmoid(columns @ beta)
    scores = np.zeros((len(names), size))
    np.add.at(scores, index, columns * (outcome - p)[:, None])
    inverse = np.linalg.inv((columns * (p * (1 - p))[:, None]).T @ columns)
    groups = len(names)
    variance = inverse @ (scores.T @ scores) @ inverse * groups / (groups - 1)
    errors = np.sqrt(np.diag(variance))
    return [
        Estimate(float(b), float(b - _Z * e), float(b + _Z * e), num, groups, method="regression")
        for b, e in zip(beta, errors, strict=True)
    ]


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
