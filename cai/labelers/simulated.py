"""Simulated people: they value a scorer's columns, and disagree as often as one asks.

Each person ranks the responses of a comparison by value / tau plus standard Gumbel noise of their own. Two responses
are then ordered with probability sigmoid(value difference / tau), the Bradley-Terry model, and a ranking of K responses
never contradicts itself (Luce 1959; Yellott 1977). Labels are hard, as people's are.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cai.errors import LabelerError
from cai.labelers.people import Biases, Crowd, Weights, agreement_of, make_crowd, noise_for
from cai.records import seed_of
from cai.scorers import Scorer
from cai.types import Comparison, Judgment, Pair

__all__ = ["SimulatedLabeler"]

Values = list[list[float]]  # of the responses of a comparison, for each kind of people


class SimulatedLabeler:
    """Several people who judge by `scorer`'s `column`, and agree with each other at the rate `agreement`.

    `agreement` is the expected share of pairs on which two people say the same (InstructGPT measured 0.726); the noise
    that gives it is solved for the comparisons at hand. A share `overlap` of the comparisons is judged by `num_labels`
    people, the rest by one; the first person's judgment is the label, unless the stage aggregates. Identical responses
    get p = 1/2, as nobody could prefer one.

    With `groups` (name: {column: weight}), people belong to them in turn, are called after them, and value what their
    group does; `spread` makes every person's weights their own (`cai.labelers.people`). `position_bias` is what being
    shown first adds to the log-odds of a response, in an order that is drawn for each person; `length_bias` what being
    twice as long (in characters) adds. The noise makes up for these, too.
    """

    name = "simulated"

    def __init__(
        self, *, scorer: Scorer, seed: int, column: str = "gold", agreement: float = 0.726, num_people: int = 5,
        overlap: float = 0.2, num_labels: int = 2, groups: Mapping[str, Weights] | None = None, spread: float = 0.0,
        position_bias: float = 0.0, length_bias: float = 0.0,
    ) -> None:  # fmt: skip
        _check(agreement, num_people, overlap, num_labels)
        self._biases = Biases(position_bias, length_bias)
        self._crowd: Crowd = make_crowd(
            num_people, column=column, groups=groups, spread=spread, columns=scorer.columns, seed=seed
        )
        self._scorer = scorer
        self._named = column if groups is None and not spread else None
        self._agreement = agreement
        self._overlap = overlap
        self._num_labels = num_labels
        self._seed = seed
        self._facts: dict[str, float] = {}

    def texts(self) -> dict[str, str]:
        """What the scorer depends on: simulated people read nothing but its columns."""
        return self._scorer.texts()

    def label(self, comparisons: Sequence[Comparison], *, done: Collection[str] = ()) -> Iterator[Judgment]:
        """Judgments by one person each, or more for the overlap; the noise is solved over all of `comparisons`."""
        values = self._values(comparisons)
        differing = [
            (comparison, own, i, j)
            for comparison, own in zip(comparisons, values, strict=True)
            for i, j in _pairs(comparison)
            if not _identical(comparison, i, j)
        ]
        tau = _tau(differing, self._crowd, self._biases, self._agreement) if differing else 1.0
        self._facts = {"tau": tau, "num_different_pairs": len(differing)}
        for comparison, own in zip(comparisons, values, strict=True):
            if comparison.id not in done:
                for number, person in enumerate(self._people(comparison)):
                    yield self._judge(comparison, own, tau, number, person)

    def facts(self) -> dict[str, float]:
        """The noise scale of the last call, and how many pairs of different texts it was solved over."""
        return dict(self._facts)

    def _values(self, comparisons: Sequence[Comparison]) -> list[Values]:
        """What each kind of people thinks of every response, by comparison; the scorer is asked once."""
        prompts = [comparison.prompt for comparison in comparisons for _ in comparison.responses]
        columns = self._scorer.score(prompts, [r.text for comparison in comparisons for r in comparison.responses])
        by_kind = [iter(values) for values in self._crowd.values(columns)]
        found = [[[next(values) for _ in c.responses] for values in by_kind] for c in comparisons]
        for comparison, own in zip(comparisons, found, strict=True):
            if not all(math.isfinite(value) for values in own for value in values):
                who = f"column: {self._named!r}" if self._named else "groups: the columns of somebody"
                raise LabelerError(f"{who} has no number for comparison {comparison.id!r}: {own}")
        return found

    def _people(self, comparison: Comparison) -> list[int]:
        """Who judges: one person drawn evenly, and for the overlap others too."""
        rng = np.random.default_rng(seed_of(self._seed, "people", comparison.id))
        overlaps = rng.random() < self._overlap
        order = rng.permutation(len(self._crowd.names))
        return [int(person) for person in order[: self._num_labels if overlaps else 1]]

    def _judge(self, comparison: Comparison, values: Values, tau: float, number: int, person: int) -> Judgment:
        own = values[self._crowd.kind_of[person]]
        shown = self._shown(comparison, person)
        last = len(shown) - 1
        leaning = [self._biases.leaning(r.text, 1 - shown.index(n) / last) for n, r in enumerate(comparison.responses)]
        noise = [_gumbel(seed_of(self._seed, "noise", comparison.id, person, r.id)) for r in comparison.responses]
        utility = [value / tau + lean + more for value, lean, more in zip(own, leaning, noise, strict=True)]
        pairs, evidence = [], []
        for i, j in _pairs(comparison):
            tie = _identical(comparison, i, j)
            pairs.append(Pair(i, j, 0.5 if tie else float(utility[i] > utility[j])))
            p = 0.5 if tie else _sigmoid((own[i] - own[j]) / tau + leaning[i] - leaning[j])
            row: dict[str, Any] = {"pair": [i, j], "gold" if self._named else "value": [own[i], own[j]]}
            row |= {"p_people": p, "identical": tie}
            if self._biases.position:
                row["shown"] = [i, j] if shown.index(i) < shown.index(j) else [j, i]
            evidence.append(row)
        return Judgment(
            id=f"{comparison.id}/{number}",
            comparison_id=comparison.id,
            labeler=self.name,
            person=self._crowd.names[person],
            pairs=tuple(pairs),
            evidence=tuple(evidence),
        )

    def _shown(self, comparison: Comparison, person: int) -> list[int]:
        """The order in which this person sees the responses."""
        rng = np.random.default_rng(seed_of(self._seed, "shown", comparison.id, person))
        return [int(index) for index in rng.permutation(len(comparison.responses))]


def _tau(
    differing: Sequence[tuple[Comparison, Values, int, int]], crowd: Crowd, biases: Biases, agreement: float
) -> float:
    """The noise scale at which two people agree as often as wanted, over pairs of different texts."""
    differences = np.array([[values[i] - values[j] for values in own] for _, own, i, j in differing]).T
    texts = ((c.responses[i].text, c.responses[j].text) for c, _, i, j in differing)
    lengths = np.array([biases.leaning(first, 0) - biases.leaning(second, 0) for first, second in texts])
    sizes = np.array([len(comparison.responses) for comparison, *_ in differing])
    offsets = {int(k): (sizes == k, biases.offsets(int(k))) for k in np.unique(sizes)}

    def rate_at(tau: float) -> float:
        log_odds = differences[list(crowd.kind_of)] / tau + lengths
        return sum(agreement_of(log_odds[:, own], added) * float(own.mean()) for own, added in offsets.values())

    return noise_for(rate_at, agreement, differences)


def _check(agreement: float, num_people: int, overlap: float, num_labels: int) -> None:
    if not 0.5 < agreement < 1:
        raise LabelerError(f"agreement: must be above 0.5 (coin flips) and below 1, got {agreement}")
    if not 0 <= overlap <= 1:
        raise LabelerError(f"overlap: must be a share from 0 to 1, got {overlap}")
    if num_labels < 2:
        raise LabelerError(f"num_labels: people who judge an overlap must be 2 or more, got {num_labels}")
    if num_people < (num_labels if overlap else 1):
        raise LabelerError(
            f"num_people: must be at least {num_labels if overlap else 1} (overlap {overlap}), got {num_people}"
        )


def _pairs(comparison: Comparison) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(len(comparison.responses)), 2))


def _identical(comparison: Comparison, i: int, j: int) -> bool:
    return comparison.responses[i].text == comparison.responses[j].text


def _gumbel(seed: int) -> float:
    """Standard Gumbel noise from a 63-bit seed, which is itself uniform."""
    return -math.log(-math.log(((seed >> 11) + 0.5) / 2**52))  # 52 bits: the sum is exact, so 0 < u < 1


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))
