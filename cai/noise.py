"""Noise ladders: responses that are worse on purpose, by more and more noise, so that their order is known unlabelled.

D-REX (Brown, Goo & Niekum 2019) clones demonstrations, adds noise to the clone, and takes less noise for better; with
earlier checkpoints in place of noise this is learning from a learner (Jacq et al. 2019; T-REX, Brown et al. 2019).
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cai.errors import ConfigError, unknown
from cai.types import Comparison

__all__ = ["Kind", "Ladder", "kept_name", "monotonicity", "spearman"]

Kind = Literal["temperature", "epsilon", "checkpoint"]


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """How noisy each response to a prompt is to be: response k is sampled at `levels[k]`, and less noise is better.

    A level is the sampling temperature; or the probability `epsilon` that a token is a random one in place of the
    model's; or, for `checkpoint`, the share of the fine-tuning that the model had still to come (0 is the final
    model, 1 the base model): the stage `sft` keeps models of the shares in its `keep_left`. Levels may repeat.
    """

    kind: Kind
    levels: Sequence[float]

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"kind: {unknown('kind of noise', self.kind, get_args(Kind))}")
        if len(set(self.levels)) < 2:
            raise ConfigError(f"levels: an order needs at least 2 different levels, got {list(self.levels)}")
        highest, what = (math.inf, "0 or more") if self.kind == "temperature" else (1, "from 0 to 1")
        for level in self.levels:
            if not 0 <= level <= highest or not math.isfinite(level):
                raise ConfigError(f"levels: of the kind {self.kind!r} must be {what}, got {level}")


def kept_name(share: float) -> str:
    """The folder, in the output of the stage `sft`, of the model with this share of its training still to come."""
    return f"left-{share:g}"


def monotonicity(comparisons: Sequence[Comparison], gold: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """What D-REX takes for granted, measured: does `gold` (comparison id -> score of each response) fall with noise?

    `levels`: number and mean gold of the responses at each level. `spearman`: the mean over prompts of Spearman's rank
    correlation of gold with noise (-1 is a perfect ladder), without the prompts (`num_flat`) whose gold scores are all
    equal, or no numbers. None where no response has a noise level.
    """
    by_level: dict[float, list[float]] = defaultdict(list)
    correlations: list[float | None] = []
    for comparison in comparisons:
        noise = [response.noise for response in comparison.responses]
        rows = [(n, g) for n, g in zip(noise, gold[comparison.id], strict=True) if n is not None and not math.isnan(g)]
        for level, score in rows:
            by_level[level].append(score)
        correlations.append(spearman([level for level, _ in rows], [score for _, score in rows]))
    if not by_level:
        return None
    found = [value for value in correlations if value is not None]
    return {
        "levels": [{"noise": n, "num": len(g), "gold": sum(g) / len(g)} for n, g in sorted(by_level.items())],
        "spearman": sum(found) / len(found) if found else None,
        "num_flat": len(correlations) - len(found),
    }


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one side does not vary (or is empty).

    >>> spearman([1, 2, 3], [10, 30, 20])
    0.5
    """
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    a, b = _centred_ranks(first), _centred_ranks(second)
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def _centred_ranks(values: Sequence[float]) -> list[float]:
    """Ranks with mean 0: how many values are smaller, less how many are larger, halved."""
    return [(sum(w < v for w in values) - sum(w > v for w in values)) / 2 for v in values]
