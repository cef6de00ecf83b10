"""From what a judge answered to a verdict: orders, principles and limits put together, and why there is none.

A row of evidence holds one answer: the `pair` (i < j), the `principle`, the two responses in the order `shown`, and `p`
of the one that was shown first, None where the answer was ill-formed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cai.types import Pair

__all__ = ["FAILED", "ILL_FORMED", "NO_PRINCIPLE", "UNDECIDED", "decided", "pairs_of_rows", "why_not"]

FAILED: Final = "failed"  # followed by : and the server's reason
ILL_FORMED: Final = "ill_formed_answer"
NO_PRINCIPLE: Final = "no_principle_applies"
UNDECIDED: Final = "undecided"


def pairs_of_rows(
    rows: Sequence[Mapping[str, Any]], *, clamp: tuple[float, float], weights: Mapping[str, float]
) -> tuple[Pair, ...]:
    """The labelled pairs: mean over principles (by weight) of the mean over orders, swaps undone, answers clamped.

    A principle counts only if its answers are well-formed in every order asked; a pair without such a one is left out.
    """
    low, high = clamp
    by_pair: dict[tuple[int, int], dict[str, list[float | None]]] = {}
    for row in rows:
        i, j = row["pair"]
        p = row["p"]
        if p is not None:
            p = min(max(p, low), high)
            p = p if row["shown"] == row["pair"] else 1 - p
        by_pair.setdefault((i, j), {}).setdefault(row["principle"], []).append(p)
    pairs = []
    for (i, j), by_principle in by_pair.items():
        whole = {
            name: [p for p in orders if p is not None] for name, orders in by_principle.items() if None not in orders
        }
        if whole:
            total = sum(weights[name] for name in whole)
            means = ((weights[name], sum(orders) / len(orders)) for name, orders in whole.items())
            pairs.append(Pair(i, j, sum(weight * p for weight, p in means) / total))
    return tuple(pairs)


def decided(pairs: Sequence[Pair], min_distance: float) -> tuple[Pair, ...]:
    """The pairs whose p is at least `min_distance` from 1/2."""
    return tuple(pair for pair in pairs if abs(pair.p - 0.5) >= min_distance)


def why_not(rows: Sequence[Mapping[str, Any]], pairs: Sequence[Pair]) -> str:
    """Why no pair has a label, when `pairs` are those that had one before `decided`."""
    failed = next((row["failed"] for row in rows if "failed" in row), None)
    if pairs:
        return UNDECIDED
    return f"{FAILED}:{failed}" if failed else ILL_FORMED if rows else NO_PRINCIPLE
