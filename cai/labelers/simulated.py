"""Simulated people: they value a scorer's gold column, and disagree as often as one asks.

Each person ranks the responses of a comparison by gold / tau plus standard Gumbel noise of their own. Two responses
are then ordered with probability sigmoid(gold difference / tau), the Bradley-Terry model, and a ranking of K responses
never contradicts itself (Luce 1959; Yellott 1977). Labels are hard, as people's are.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cai.errors import LabelerError, unknown
from cai.records import seed_of
from cai.scorers import Scorer
from cai.types import Comparison, Judgment, Pair

__all__ = ["SimulatedLabeler", "agreement_at", "solve_tau"]

_HALVINGS = 200  # of the logarithm of tau: far below what floats can tell apart


class SimulatedLabeler:
    """Several people who judge by `scorer`'s `column`, and agree with each other at the rate `agreement`.

    `agreement` is the expected share of pairs on which two people say the same (InstructGPT measured 0.726); the noise
    that gives it is solved for the comparisons at hand. A share `overlap` of the comparisons is judged by a second
    person, so that agreement can be measured; the first person's judgment is the label. Identical responses get
    p = 1/2, as nobody could prefer one.
    """

    name = "simulated"

    def __init__(
        self, *, scorer: Scorer, seed: int, column: str = "gold", agreement: float = 0.726, num_people: int = 5,
        overlap: float = 0.2,
    ) -> None:  # fmt: skip
        if not 0.5 < agreement < 1:
            raise LabelerError(f"agreement: must be above 0.5 (coin flips) and below 1, got {agreement}")
        if not 0 <= overlap <= 1:
            raise LabelerError(f"overlap: must be a share from 0 to 1, got {overlap}")
        if num_people < 1 or (overlap > 0 and num_people < 2):
            raise LabelerError(
                f"num_people: must be at least {2 if overlap else 1} (overlap {overlap}), got {num_people}"
            )
        if column not in scorer.columns:
            raise LabelerError(f"column: {unknown('column of the scorer', column, scorer.columns)}")
        self._scorer = scorer
        self._column = column
        self._agreement = agreement
        self._num_people = num_people
        self._overlap = overlap
        self._seed = seed
        self._facts: dict[str, float] = {}

    def texts(self) -> dict[str, str]:
        """What the scorer depends on: simulated people read nothing but its column."""
        return self._scorer.texts()

    def label(self, comparisons: Sequence[Comparison], *, done: Collection[str] = ()) -> Iterator[Judgment]:
        """Judgments by one person each, or two for the overlap; the noise is solved over all of `comparisons`."""
        gold = self._gold(comparisons)
        differences = [
            values[i] - values[j]
            for comparison, values in zip(comparisons, gold, strict=True)
            for i, j in _pairs(comparison)
            if not _identical(comparison, i, j)
        ]
        tau = solve_tau(np.array(differences), self._agreement) if differences else 1.0
        self._facts = {"tau": tau, "num_different_pairs": len(differences)}
        for comparison, values in zip(comparisons, gold, strict=True):
            if comparison.id not in done:
                for number, person in enumerate(self._people(comparison)):
                    yield self._judge(comparison, values, tau, number, person)

    def facts(self) -> dict[str, float]:
        """The noise scale of the last call, and how many pairs of different texts it was solved over."""
        return dict(self._facts)

    def _gold(self, comparisons: Sequence[Comparison]) -> list[list[float]]:
        """The scorer's column for every response, in one call, by comparison."""
        prompts = [comparison.prompt for comparison in comparisons for _ in comparison.responses]
        columns = self._scorer.score(prompts, [r.text for comparison in comparisons for r in comparison.responses])
        scores = iter(columns[self._column])
        gold = [[next(scores) for _ in comparison.responses] for comparison in comparisons]
        for comparison, values in zip(comparisons, gold, strict=True):
            if not all(map(math.isfinite, values)):
                raise LabelerError(f"column: {self._column!r} has no number for comparison {comparison.id!r}: {values}")
        return gold

    def _people(self, comparison: Comparison) -> list[int]:
        """Who judges: one person drawn evenly, and for the overlap another one."""
        rng = np.random.default_rng(seed_of(self._seed, "people", comparison.id))
        overlaps = rng.random() < self._overlap
        return [int(person) for person in rng.permutation(self._num_people)[: 2 if overlaps else 1]]

    def _judge(self, comparison: Comparison, gold: Sequence[float], tau: float, number: int, person: int) -> Judgment:
        noise = [_gumbel(seed_of(self._seed, "noise", comparison.id, person, r.id)) for r in comparison.responses]
        utility = [value / tau + more for value, more in zip(gold, noise, strict=True)]
        pairs, evidence = [], []
        for i, j in _pairs(comparison):
            tie = _identical(comparison, i, j)
            pairs.append(Pair(i, j, 0.5 if tie else float(utility[i] > utility[j])))
            p = 0.5 if tie else _sigmoid((gold[i] - gold[j]) / tau)
            evidence.append({"pair": [i, j], "gold": [gold[i], gold[j]], "p_people": p, "identical": tie})
        return Judgment(
            id=f"{comparison.id}/{number}",
            comparison_id=comparison.id,
            labeler=self.name,
            person=f"person-{person + 1}",
            pairs=tuple(pairs),
            evidence=tuple(evidence),
        )


def agreement_at(differences: NDArray[np.float64], tau: float) -> float:
    """How often two people agree on pairs with these gold differences, shape (N,): the mean of q^2 + (1 - q)^2 with
    q = sigmoid(difference / tau), which is (1 + tanh^2(difference / 2 tau)) / 2.
    """
    return float(np.mean(0.5 + 0.5 * np.tanh(differences / (2 * tau)) ** 2))


def solve_tau(differences: NDArray[np.float64], agreement: float) -> float:
    """The noise scale at which `agreement_at(differences, tau)` is `agreement`, by bisection of log tau.

    Agreement falls from its ceiling, 1 - (share of zero differences) / 2, to 1/2 as tau grows. Raises LabelerError
    when `agreement` is out of that range.
    """
    sizes = np.abs(differences[differences != 0])
    ceiling = 1 - 0.5 * float(np.mean(differences == 0))
    if not 0.5 < agreement < ceiling:
        raise LabelerError(
            f"agreement: {agreement} cannot be reached on these {len(differences)} pairs, of which "
            f"{len(differences) - len(sizes)} have equal gold scores; it must be above 0.5 and below {ceiling:.4f}"
        )
    # tanh(e^10 / 2) is 1 and tanh(e^-20 / 2)^2 is lost beside 1/2: the root lies between, whatever the unit of gold.
    low, high = math.log(sizes.min()) - 10, math.log(sizes.max()) + 20
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if agreement_at(differences, math.exp(middle)) > agreement:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _pairs(comparison: Comparison) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(len(comparison.responses)), 2))


def _identical(comparison: Comparison, i: int, j: int) -> bool:
    return comparison.responses[i].text == comparison.responses[j].text


def _gumbel(seed: int) -> float:
    """Standard Gumbel noise from a 63-bit seed, which is itself uniform."""
    return -math.log(-math.log(((seed >> 11) + 0.5) / 2**52))  # 52 bits: the sum is exact, so 0 < u < 1


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))
