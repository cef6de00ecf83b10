"""Estimates with honest intervals: prompts are drawn again, never single responses; several seeds are observations.

Responses to one prompt are correlated, so the unit that is drawn again is the prompt, with all its responses.
Everything measured on the same prompts is resampled together: that makes a difference between two arms a paired one.

The figure of several seeds is the mean of their own figures, however many values each has: seeds are the observations,
and pooling what they counted would let a seed that counts much stand for the others (Simpson's paradox).

With one or two seeds, intervals are percentiles of that bootstrap: they are about the very models that were trained.
With more, what counts is how much the seeds differ, and three seeds are three observations: Student's t with as many
degrees of freedom as there are seeds less one. The bootstrap that draws seeds, then prompts, is not used for intervals:
of three seeds its 95 % interval covers the truth in 73 % of studies where seeds differ much (`benchmarks/coverage.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Final

import numpy as np
from scipy.special import chdtri, stdtr, stdtrit

from cai.report.formulas import score_interval
from cai.report.resampling import Floats, Resampler, Statistic, Table, mean_of, same_counts

__all__ = ["SEEDS", "Bootstrap", "Estimate"]

FEW: Final = (
    10  # a rate with fewer events (or non-events) gets Wilson's interval: percentiles of the bootstrap are too short
)
SEEDS: Final = 3  # fewer do not tell how much seeds differ: two would give intervals six times as wide as those of many
LUCK: Final = (
    0.05  # seeds that agree more than they would in this share of studies, by their prompts alone, agree by luck
)
Part = tuple[float, Sequence[Table]]  # of a contrast: a weight, and the tables (one per seed) that it is the weight of


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval (or whatever level was asked for).

    `num` values on `num_prompts` different prompts; `per_seed` has the figure of each seed alone. `method` is
    `bootstrap` (over prompts), `seeds` (Student's t over seeds), or, where events are too few, `wilson` and `mover`.
    Differences have a two-sided `p_value`, and where a margin was given `p_equal`, that of the test for equivalence:
    small when the difference is surely smaller than the margin, either way.
    """

    value: float
    low: float
    high: float
    num: int
    num_prompts: int
    per_seed: Mapping[int, float] = field(default_factory=dict)
    method: str = "bootstrap"
    p_value: float | None = None
    p_equal: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0

    def complement(self) -> "Estimate":
        """The rate of the opposite event: 1 - the figure, bounds swapped."""
        seeds = {seed: 1 - value for seed, value in self.per_seed.items()}
        return replace(self, value=1 - self.value, low=1 - self.high, high=1 - self.low, per_seed=seeds)


@dataclass(frozen=True, slots=True)
class _Spread:
    """The variance of an estimate, and its degrees of freedom (infinite where it is about prompts, which are many)."""

    variance: float
    df: float

    def quantile(self, level: float) -> float:
        """Of Student's t: how many standard errors an interval of `level` reaches to each side."""
        return float(stdtrit(self.df, (1 + level) / 2))


class Bootstrap:
    """Figures and differences of figures with their intervals. The same prompts always get the same draws."""

    def __init__(self, *, num_draws: int = 10_000, seed: int = 0, level: float = 0.95) -> None:
        self._level = level
        self._resampler = Resampler(num_draws, seed)
        self._memory: dict[tuple[Statistic, int], tuple[Table, Floats]] = {}

    def estimate(self, tables: Sequence[Table], statistic: Statistic = mean_of) -> Estimate | None:
        """The mean of the tables' statistics, with its interval; None where nothing counts, or too little for one: what
        is counted on a single prompt in one seed or two, unless it is a rate.
        """
        tables = _counting(tables, statistic)
        if not tables:
            return None
        value = _point(tables, statistic)
        result = Estimate(
            value=value,
            low=value,
            high=value,
            num=sum(t.num for t in tables),
            num_prompts=len({p for t in tables for p in t.counted()}),
            per_seed={t.seed: _point([t], statistic) for t in tables},
        )
        spread = self._spread(tables, statistic)
        if statistic is mean_of and all(t.is_rate for t in tables):
            events = sum(float(t.sums[:, 0].sum()) for t in tables)
            few = spread.variance == 0 or min(events, result.num - events) < FEW
            if few or len(tables) >= SEEDS:
                return self._wilson(result, spread, tables, few)
        if len(tables) >= SEEDS:
            return _within(self._student(result, spread), _bounds(tables))
        alone = all(sum(1 for _ in t.counted()) < 2 for t in tables)  # nothing to draw again
        return None if alone else self._percentiles(result, self._draws(tables, statistic))

    def difference(
        self, a: Sequence[Table], b: Sequence[Table], statistic: Statistic = mean_of, *, margin: float | None = None
    ) -> Estimate | None:
        """Statistic of `a` minus statistic of `b`: paired by seed (where they have seeds in common) and by prompt.

        The p-value is that of `contrast`, or, with one or two seeds, of the permutation test that exchanges what `a`
        and `b` got on a prompt (exact, also where events are few). It needs both to have counted the same: exchanging
        what one of them alone has would move the counts, too.
        """
        parts, _ = _paired([(1.0, a), (-1.0, b)], statistic)
        result = self.contrast(parts, statistic, margin=margin)
        first, second = (tables for _, tables in parts)
        if result is None or len(first) != len(second) or len(first) >= SEEDS:
            return result
        pairs = list(zip(first, second, strict=True))
        if not all(same_counts(one, other) for one, other in pairs):
            return result
        swapped = [self._resampler.swapped(x, y) for x, y in pairs]
        draws = _weighted([(1 / len(pairs), statistic(one) - statistic(other)) for one, other in swapped])
        beyond = int((np.abs(draws) >= abs(result.value) - 1e-12).sum())
        return replace(result, p_value=(beyond + 1) / (len(draws) + 1))

    def contrast(
        self, parts: Sequence[Part], statistic: Statistic = mean_of, *, null: float = 0.0, margin: float | None = None
    ) -> Estimate | None:
        """The sum of weight times statistic over `parts`, less `null`; None if a part has none.

        Parts are paired as in `difference`. Those of three seeds or more that have fewer than three in common are not
        cut to these, but compared by Welch's test, as if all seeds were others.
        """
        parts, seeds = _paired(parts, statistic)
        found = [(weight, self.estimate(tables, statistic)) for weight, tables in parts]
        known = [(weight, e) for weight, e in found if e is not None]
        if not parts or len(known) < len(found):
            return None
        value = sum(weight * e.value for weight, e in known) - null
        result = Estimate(
            value=value,
            low=value,
            high=value,
            num=min(e.num for _, e in known),
            num_prompts=min(e.num_prompts for _, e in known),
            per_seed={s: sum(weight * e.per_seed[s] for weight, e in known) - null for s in seeds},
        )
        if any(e.method == "wilson" for _, e in known):
            terms = [weight * self._draws(tables, statistic) for weight, tables in parts]
            result = self._mover(result, known, terms, self._spread_of(parts, [], statistic).df, margin)
        elif any(len(e.per_seed) < SEEDS for _, e in known):
            own = [(weight, self._draws(tables, statistic)) for weight, tables in parts]
            result = self._percentiles(result, _weighted(own) - null, margin)
        else:
            result = self._student(result, self._spread_of(parts, seeds, statistic), margin)
        ends = [(weight, _bounds(tables)) for weight, tables in parts]
        low, high = (sum(take(w * a, w * b) for w, (a, b) in ends) for take in (min, max))
        return _within(result, (low - null, high - null))

    def draws(self, tables: Sequence[Table], statistic: Statistic = mean_of) -> Floats:
        """(D,) the statistic when seeds, and prompts within them, are drawn again: for shares of draws, not intervals.

        Draws go together with those of other tables on the same prompts and seeds.
        """
        return statistic(self._resampler.sums_over_seeds(_counting(tables, statistic)))

    def _draws(self, tables: Sequence[Table], statistic: Statistic) -> Floats:
        """(D,) the mean of the tables' statistics in each resample of the prompts, seeds as they are."""
        return _weighted([(1 / len(tables), self._draws_of(table, statistic)) for table in tables])

    def _draws_of(self, table: Table, statistic: Statistic) -> Floats:
        key = (statistic, id(table))  # a table is kept with its draws, so that the id stays its own
        if key not in self._memory:
            self._memory[key] = table, statistic(self._resampler.sums(table))
        return self._memory[key][1]

    # --- how sure a figure is -----------------------------------------------------------------------------------------

    def _spread_of(self, parts: Sequence[Part], seeds: Sequence[int], statistic: Statistic) -> _Spread:
        """Of a contrast: of its value by seed where the parts have seeds in common, else of independent parts."""
        if not seeds:
            own = [(weight, self._spread(tables, statistic)) for weight, tables in parts]
            variances = [weight**2 * spread.variance for weight, spread in own]
            # Welch and Satterthwaite
            weighed = sum(v**2 / spread.df for v, (_, spread) in zip(variances, own, strict=True))
            return _Spread(sum(variances), sum(variances) ** 2 / weighed if weighed else math.inf)
        by_seed = [[(w, next(t for t in tables if t.seed == seed)) for w, tables in parts] for seed in seeds]
        points = [sum(w * _point([t], statistic) for w, t in own) for own in by_seed]
        draws = [_weighted([(w, self._draws_of(t, statistic)) for w, t in own]) for own in by_seed]
        return _spread_over(points, draws, _share_prompts(parts[0][1]))

    def _spread(self, tables: Sequence[Table], statistic: Statistic) -> _Spread:
        if len(tables) < SEEDS:
            return _Spread(float(np.nanvar(self._draws(tables, statistic))), math.inf)
        points, draws = zip(*((_point([t], statistic), self._draws_of(t, statistic)) for t in tables), strict=True)
        return _spread_over(points, draws, _share_prompts(tables))

    # --- intervals ----------------------------------------------------------------------------------------------------

    def _percentiles(self, result: Estimate, draws: Floats, margin: float | None = None) -> Estimate:
        """The interval of one or two seeds; p-values are shares of draws on the wrong side."""
        tail = (1 - self._level) / 2
        low, high = (float(bound) for bound in np.nanquantile(draws, [tail, 1 - tail]))
        result = replace(result, low=min(low, result.value), high=max(high, result.value))

        def share(wrong: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> float:
            return (int(wrong.sum()) + 1) / (len(draws) + 1)

        p_value = min(1.0, 2 * min(share(draws <= 0), share(draws >= 0)))
        p_equal = None if margin is None else max(share(draws <= -margin), share(draws >= margin))
        return replace(result, p_value=p_value, p_equal=p_equal)

    def _student(self, result: Estimate, spread: _Spread, margin: float | None = None) -> Estimate:
        error = math.sqrt(spread.variance)
        reach = spread.quantile(self._level) * error
        result = replace(result, low=result.value - reach, high=result.value + reach, method="seeds")
        return _tested(result, (error, error), spread.df, margin)

    def _wilson(self, result: Estimate, spread: _Spread, tables: Sequence[Table], few: bool) -> Estimate:
        """Wilson's interval: after 0 of 200 events all resamples are 0, and the truth need not be. With several seeds
        it keeps a rate's interval between 0 and 1.

        The effective number of trials is what gives the variance, p (1 - p) / variance, at most `num` where events are
        few. With no variance to go by, each seed's prompts are trials of its own part of the mean; prompts that seeds
        share count once.
        """
        if spread.variance:
            trials = result.value * (1 - result.value) / spread.variance
            trials = min(trials, result.num) if few else trials
        else:
            counted = [sum(1 for _ in t.counted()) for t in tables]
            trials = min(len(tables) ** 2 / sum(1 / num for num in counted), result.num_prompts)
        low, high = score_interval(result.value * trials, trials, spread.quantile(self._level))
        return replace(result, low=low, high=high, method="wilson" if few else "seeds")

    def _mover(
        self, result: Estimate, parts: Sequence[tuple[float, Estimate]], terms: Sequence[Floats], df: float,
        margin: float | None,
    ) -> Estimate:  # fmt: skip
        """Interval of a contrast from those of its parts (Newcombe 1998, method 10). Pairing that makes it sharper is
        left out, so that it is wide; what makes it less sharp (wins and losses, which exclude each other) is not.

        P-values are Student's with the degrees of freedom `df`, and below .05 where the interval leaves out 0.
        """
        down = [w * (e.value - (e.low if w > 0 else e.high)) for w, e in parts]
        up = [w * ((e.high if w > 0 else e.low) - e.value) for w, e in parts]
        pairs = [(i, j, _widens(terms[i], terms[j])) for i, j in combinations(range(len(terms)), 2)]
        below, above = (
            math.sqrt(sum(x * x for x in side) + 2 * sum(rho * side[i] * side[j] for i, j, rho in pairs))
            for side in (down, up)
        )
        reach = _Spread(0.0, df).quantile(self._level)
        result = replace(result, low=result.value - below, high=result.value + above, method="mover")
        return _tested(result, (below / reach, above / reach), df, margin)


def _widens(one: Floats, other: Floats) -> float:
    """The correlation of the draws of two terms of a sum, where it makes the sum less sure; else 0."""
    num = min(len(one), len(other))
    x, y = one[:num] - np.nanmean(one[:num]), other[:num] - np.nanmean(other[:num])
    scale = math.sqrt(np.nanmean(x * x) * np.nanmean(y * y))
    return max(0.0, float(np.nanmean(x * y)) / scale) if scale > 0 else 0.0


def _tested(result: Estimate, errors: tuple[float, float], df: float, margin: float | None) -> Estimate:
    """With p-values of Student's t; `errors` are the standard errors below and above the value."""

    def tail(distance: float, error: float) -> float:
        return float(stdtr(df, -distance / error)) if error else float(distance <= 0)

    p_value = min(1.0, 2 * tail(abs(result.value), errors[0 if result.value > 0 else 1]))
    p_equal = None
    if margin is not None:
        p_equal = max(tail(margin + result.value, errors[0]), tail(margin - result.value, errors[1]))
    return replace(result, p_value=p_value, p_equal=p_equal)


def _bounds(tables: Sequence[Table]) -> tuple[float, float]:
    return min(t.bounds[0] for t in tables), max(t.bounds[1] for t in tables)


def _within(result: Estimate, bounds: tuple[float, float]) -> Estimate:
    """Student's t over few seeds does not know where a statistic ends."""
    return replace(result, low=max(result.low, bounds[0]), high=min(result.high, bounds[1]))


def _spread_over(points: Sequence[float], draws: Sequence[Floats], share_prompts: bool) -> _Spread:
    """Of the mean of S seeds' `points`, whose prompts were drawn again in `draws`.

    Between seeds: the variance of the points, which holds what their own prompts add. Prompts that the seeds share do
    not show in it; what they add to all seeds alike is put on top.
    """
    num_seeds = len(points)
    num = min(map(len, draws))
    stacked = np.stack([own[:num] for own in draws])
    together = stacked.mean(axis=0)
    within = float(np.nanvar(stacked - together, axis=1).mean()) * num_seeds / (num_seeds - 1)
    by_luck = within * float(chdtri(num_seeds - 1, 1 - LUCK)) / (num_seeds - 1)
    between = max(float(np.var(points, ddof=1)), by_luck) / num_seeds
    alike = max(0.0, float(np.nanvar(together)) - within / num_seeds) if share_prompts else 0.0
    total = between + alike
    return _Spread(total, (num_seeds - 1) * (total / between) ** 2 if between else math.inf)


def _share_prompts(tables: Sequence[Table]) -> bool:
    return len(set().union(*(t.prompts for t in tables))) < sum(len(t.prompts) for t in tables)


def _paired(parts: Sequence[Part], statistic: Statistic) -> tuple[list[Part], list[int]]:
    """The parts in the seeds that all of them have a figure in, and these seeds; none, and the parts as they are, where
    there is no such seed, or too few although each part has enough.
    """
    parts = [(weight, _counting(tables, statistic)) for weight, tables in parts]
    common = set.intersection(*({t.seed for t in tables} for _, tables in parts)) if parts else set()
    if not common or len(common) < SEEDS <= min(len(tables) for _, tables in parts):
        return parts, []
    return [(weight, [t for t in tables if t.seed in common]) for weight, tables in parts], sorted(common)


def _weighted(parts: Sequence[tuple[float, Floats]]) -> Floats:
    num = min(len(draws) for _, draws in parts)
    return np.asarray(sum(weight * draws[:num] for weight, draws in parts))


def _point(tables: Sequence[Table], statistic: Statistic) -> float:
    return float(np.mean([statistic(t.sums.sum(axis=0)[None, :])[0] for t in tables]))


def _counting(tables: Sequence[Table], statistic: Statistic) -> list[Table]:
    """The tables that have a figure of their own, in order of seeds."""
    return sorted((t for t in tables if not math.isnan(_point([t], statistic))), key=lambda t: t.seed)
