"""Who simulated people are: what they value, how they are led astray, and how much noise makes them agree as wanted.

A person ranks by utility: value / tau, plus what length and position add, plus standard Gumbel noise. So the log-odds
of preferring i to j are (value_i - value_j) / tau + length_bias * log2(length_i / length_j) + position_bias * (s_i -
s_j), where s falls evenly from 1 for the response that is shown first to 0 for the last.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cai.errors import LabelerError, unknown
from cai.records import seed_of

__all__ = ["Biases", "Crowd", "Floats", "Weights", "agreement_of", "group_of", "make_crowd", "noise_for"]

Floats = NDArray[np.float64]
Weights = Mapping[str, float]  # by column of the scorer

_STEPS = 96  # of the search for a crossing, over the noise scales
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Biases:
    """What leads people astray, in log-odds: being shown first, and being twice as long (in characters)."""

    position: float = 0.0
    length: float = 0.0

    def __post_init__(self) -> None:
        for name, bias in (("position_bias", self.position), ("length_bias", self.length)):
            if not math.isfinite(bias):
                raise LabelerError(f"{name}: must be a number, got {bias}")

    def leaning(self, text: str, place: float) -> float:
        """What length and place (1 for the first, 0 for the last) add to the utility of a response."""
        return self.length * math.log2(max(1, len(text))) + self.position * place

    def offsets(self, num_responses: int) -> dict[float, float]:
        """What their places add to the log-odds of one of two responses, with probabilities, when all orders of K
        responses are equally likely: m places apart are K - m among K (K - 1).
        """
        k = num_responses
        if self.position == 0:
            return {0.0: 1.0}
        return {self.position * m / (k - 1): (k - abs(m)) / (k * (k - 1)) for m in range(1 - k, k) if m}


@dataclass(frozen=True, slots=True)
class Crowd:
    """People by number: what each is called, and whose values each has; `kinds` are the different values there are."""

    names: tuple[str, ...]
    kind_of: tuple[int, ...]
    kinds: tuple[Weights, ...]

    def values(self, columns: Mapping[str, Sequence[float]]) -> list[list[float]]:
        """(kinds, N) what each kind thinks of N responses. A column that does not apply (NaN) adds nothing; NaN where
        none of them applies.
        """
        size = len(next(iter(columns.values()), ()))
        return [[_valued(weights, columns, index) for index in range(size)] for weights in self.kinds]


def _valued(weights: Weights, columns: Mapping[str, Sequence[float]], index: int) -> float:
    parts = [weight * columns[name][index] for name, weight in weights.items() if not math.isnan(columns[name][index])]
    return sum(parts) if parts else math.nan


def make_crowd(
    num_people: int, *, column: str, groups: Mapping[str, Weights] | None, spread: float, columns: Sequence[str],
    seed: int,
) -> Crowd:  # fmt: skip
    """People who all value `column`, or who belong to `groups` in turn and value what their group does.

    Every weight is a person's own: that of the group, times 1 plus `spread` times standard normal noise. LabelerError
    for a column that the scorer (`columns`) has not, or groups that nobody can belong to.
    """
    if not 0 <= spread < math.inf:
        raise LabelerError(f"spread: must be 0 or more, got {spread}")
    if groups is not None and not 1 <= len(groups) <= num_people:
        raise LabelerError(f"groups: there are {len(groups)} for num_people {num_people}; each needs somebody")
    if groups is None and column not in columns:
        raise LabelerError(f"column: {unknown('column of the scorer', column, columns)}")
    for group, weights in (groups or {}).items():
        _check_values(f"groups.{group}", weights, columns)
    names, own = [], []
    for number in range(num_people):
        if groups is None:
            name, weights = f"person-{number + 1}", {column: 1.0}
        else:
            group = list(groups)[number % len(groups)]
            name, weights = f"{group}-{number // len(groups) + 1}", dict(groups[group])
        if spread:
            rng = np.random.default_rng(seed_of(seed, "values", number))
            weights = {key: weight * (1 + spread * rng.standard_normal()) for key, weight in weights.items()}
        names.append(name)
        own.append({key: float(weight) for key, weight in weights.items()})
    kinds = [weights for number, weights in enumerate(own) if weights not in own[:number]]
    return Crowd(tuple(names), tuple(map(kinds.index, own)), tuple(kinds))


def _check_values(where: str, weights: object, columns: Sequence[str]) -> None:
    if not isinstance(weights, Mapping) or not weights:
        raise LabelerError(
            f"{where}: must be weights by column of the scorer, as in {{{columns[0]}: 1}}, got {weights!r}"
        )
    for name, weight in weights.items():
        if name not in columns:
            raise LabelerError(f"{where}: {unknown('column of the scorer', name, columns)}")
        if type(weight) not in (int, float) or not math.isfinite(weight):
            raise LabelerError(f"{where}.{name}: must be a number, got {weight!r}")


def group_of(person: str) -> str:
    """The group that a simulated person belongs to: the name without its number."""
    return person.rpartition("-")[0]


# --- noise ------------------------------------------------------------------------------------------------------------


def agreement_of(log_odds: Floats, offsets: Mapping[float, float]) -> float:
    """How often two people agree on N pairs of responses, when `log_odds` (people, N) are those of the first response
    and each person's order adds one of `offsets`, with its probability.

    The mean, over two different people, of q q' + (1 - q)(1 - q'), which is (1 + m m') / 2 with m = 2 q - 1 the mean
    of tanh(log-odds / 2) over the orders. One person alone stands for two of the same mind.
    """
    means = np.zeros_like(log_odds)
    for offset, probability in offsets.items():
        means += probability * np.tanh((log_odds + offset) / 2)
    num = len(means)
    together = means[0] ** 2 if num == 1 else (means.sum(axis=0) ** 2 - (means**2).sum(axis=0)) / (num * (num - 1))
    return float(0.5 + 0.5 * together.mean())


def noise_for(rate_at: Callable[[float], float], agreement: float, differences: Floats) -> float:
    """The noise scale tau at which `rate_at(tau)` is `agreement`, for people whose values differ by `differences`.

    `differences` has shape (kinds of people, N pairs). People of different values may agree most at some noise and less
    without any, so the largest tau is taken that gives the rate: found from above, then bisected. LabelerError when no
    tau does.
    """
    num_pairs, num_equal = differences.shape[-1], int((differences == 0).all(axis=0).sum())
    where = (
        f"agreement: {agreement} cannot be reached on these {num_pairs} pairs, of which {num_equal} have equal values"
    )
    if num_equal == num_pairs:
        raise LabelerError(where)
    sizes = np.abs(differences[differences != 0])
    # tanh(e^-8 / 2)^2 is lost beside 1/2, and tanh(e^4 / 2) is 1
    grid = np.linspace(math.log(sizes.max()) + 8, math.log(sizes.min()) - 4, _STEPS)
    rates = [rate_at(math.exp(x)) for x in grid]
    above = next((n for n, rate in enumerate(rates) if rate >= agreement), None)
    if not above:
        raise LabelerError(f"{where}; it must be above {rates[0]:.4f} and at most {max(rates):.4f}")
    low, high = grid[above], grid[above - 1]  # of log tau: enough agreement at `low`, too little at `high`
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rate_at(math.exp(middle)) >= agreement else (low, middle)
    return math.exp((low + high) / 2)
