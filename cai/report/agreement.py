"""Agreement of labelers and calibration of probabilities, as statistics that `Bootstrap` can resample."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cai.report.formulas import wilson
from cai.report.resampling import Floats, Table, mean_table, ratio, table_of
from cai.report.statistics import Bootstrap, Estimate

__all__ = [
    "Agreement",
    "Bin",
    "Estimator",
    "alpha_of",
    "alpha_table",
    "calibration",
    "calibration_error_of",
    "calibration_table",
    "human_ceiling",
    "kappa_of",
    "kappa_table",
]


def kappa_table(
    seed: int, prompts: Sequence[str], first: Sequence[int], second: Sequence[int], *, num_categories: int = 2
) -> Table:
    """For `kappa_of`: two labelers' labels of the same items, categories 0, 1, ... (or False and True)."""
    cells = np.asarray(first, dtype=int) * num_categories + np.asarray(second, dtype=int)
    return table_of(seed, prompts, np.eye(num_categories**2)[cells], len(cells), bounds=(-1.0, 1.0))


def kappa_of(sums: Floats) -> Floats:
    """(N, C * C) counts by the first's category, then the second's -> (N,) Cohen's kappa = (p_o - p_e) / (1 - p_e)."""
    num_categories = math.isqrt(sums.shape[1])
    counts = sums.reshape(-1, num_categories, num_categories)
    total = counts.sum(axis=(1, 2))
    observed = ratio(np.trace(counts, axis1=1, axis2=2), total)
    expected = ratio((counts.sum(axis=2) * counts.sum(axis=1)).sum(axis=1), total * total)
    return ratio(observed - expected, 1 - expected)


def alpha_table(
    seed: int, prompts: Sequence[str], ratings: Sequence[Sequence[int]], *, num_categories: int = 2
) -> Table:
    """For `alpha_of`: `ratings[i]` are the labels of item i by however many people; one alone tells nothing."""
    items = [(p, np.bincount(r, minlength=num_categories)) for p, r in zip(prompts, ratings, strict=True) if len(r) > 1]
    rows = [(*counts, (counts.sum() ** 2 - (counts**2).sum()) / (counts.sum() - 1)) for _, counts in items]
    columns = np.array(rows, dtype=np.float64).reshape(-1, num_categories + 1)
    return table_of(seed, [p for p, _ in items], columns, len(items), bounds=(-1.0, 1.0))


def alpha_of(sums: Floats) -> Floats:
    """(N, C + 1) counts of the categories, disagreement -> (N,) Krippendorff's nominal alpha = 1 - D_o / D_e
    (Krippendorff 2018).
    """
    counts = sums[:, :-1]
    total = counts.sum(axis=1)
    by_chance = total**2 - (counts**2).sum(axis=1)
    return 1 - ratio(sums[:, -1] / np.maximum(total, 1), ratio(by_chance, total * (total - 1)))


def calibration_table(
    seed: int, prompts: Sequence[str], predicted: Sequence[float], outcome: Sequence[float], *, num_bins: int = 10
) -> Table:
    """For `calibration_error_of` and `calibration`: probabilities in [0, 1] and (soft) outcomes, in equal bins."""
    p, y = np.asarray(predicted, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    place = np.minimum((p * num_bins).astype(int), num_bins - 1)
    one_hot = np.eye(num_bins)[place]
    columns = np.hstack([one_hot, one_hot * p[:, None], one_hot * y[:, None]])
    return table_of(seed, prompts, columns, len(p), bounds=(0.0, 1.0))


def calibration_error_of(sums: Floats) -> Floats:
    """(N, 3 * bins) -> (N,) expected calibration error: sum over bins of |sum predicted - sum outcome| / total."""
    count, predicted, outcome = np.split(sums, 3, axis=1)
    return ratio(np.abs(predicted - outcome).sum(axis=1), count.sum(axis=1))


def human_ceiling(agreement: float) -> float | None:
    """How often one person's label equals the truth, if two people agree at the rate `agreement` and err alike and
    independently: agreement = q^2 + (1 - q)^2, so q = (1 + sqrt(2 agreement - 1)) / 2. None below 1/2. Where some pairs
    are harder than others it is the most that this can be, since the root of a mean is larger than the mean of roots.
    """
    return (1 + math.sqrt(2 * agreement - 1)) / 2 if agreement >= 0.5 else None


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions in [low, high): their number, mean, the mean outcome, and its interval."""

    low: float
    high: float
    num: int
    predicted: float
    outcome: float
    outcome_low: float
    outcome_high: float


def calibration(tables: Sequence[Table], *, level: float = 0.95) -> list[Bin]:
    """The bins of `calibration_table`s, empty ones left out; intervals are Wilson's."""
    count, predicted, outcome = np.split(np.sum([t.sums.sum(axis=0) for t in tables], axis=0), 3)
    num_bins = len(count)
    bins = []
    for k in np.flatnonzero(count):
        low, high = wilson(outcome[k], count[k], level=level)
        means = float(predicted[k] / count[k]), float(outcome[k] / count[k])
        bins.append(Bin(k / num_bins, (k + 1) / num_bins, int(count[k]), *means, low, high))
    return bins


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two judgments of the same pairs: how often the same, and how much beyond chance."""

    first: str
    second: str
    raw: Estimate
    kappa: Estimate | None
    alpha: Estimate | None


@dataclass(frozen=True, slots=True)
class Estimator:
    """Estimates from rows by seed; `prompts` are all prompts of a seed, so that every figure shares the same draws."""

    bootstrap: Bootstrap
    prompts: Mapping[int, Iterable[str]]

    def mean(self, rows: Mapping[int, Sequence[tuple[str, float]]]) -> Estimate | None:
        """Of (prompt, value) rows: rates, probabilities and distances of them, all within 0 and 1."""
        return self.bootstrap.estimate(self.tables(rows))

    def tables(self, rows: Mapping[int, Sequence[tuple[str, float]]]) -> list[Table]:
        """Of (prompt, value) rows as in `mean`."""
        return self._within(
            [
                mean_table(seed, [p for p, _ in pairs], [v for _, v in pairs], bounds=(0.0, 1.0))
                for seed, pairs in rows.items()
            ]
        )

    def agreement(
        self, first: str, second: str, rows: Mapping[int, Sequence[tuple[str, bool, bool]]]
    ) -> Agreement | None:
        """Of (prompt, first's label, second's label) rows; None without any."""
        raw = self.mean({s: [(p, float(a == b)) for p, a, b in found] for s, found in rows.items()})
        if raw is None:
            return None
        kappas, alphas = [], []
        for seed, found in rows.items():
            prompts, a, b = [p for p, _, _ in found], [a for _, a, _ in found], [b for _, _, b in found]
            kappas.append(kappa_table(seed, prompts, a, b))
            alphas.append(alpha_table(seed, prompts, list(zip(a, b, strict=True))))
        kappa = self.bootstrap.estimate(self._within(kappas), kappa_of)
        return Agreement(first, second, raw, kappa, self.bootstrap.estimate(self._within(alphas), alpha_of))

    def _within(self, tables: Sequence[Table]) -> list[Table]:
        return [table.within(self.prompts.get(table.seed, ())) for table in tables]
