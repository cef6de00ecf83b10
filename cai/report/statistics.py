"""Estimates with honest intervals: the bootstrap resamples prompts (and seeds), never single responses.

Responses to one prompt are correlated, so the unit that is drawn again is the prompt, with all its responses, and,
when several seeds ran, first the seed. Everything measured on the same prompts is resampled together: that makes a
difference between two arms a paired one, and prompts that several seeds share count as what they are, the same.

A `Table` holds sums per prompt; a statistic (a mean; kappa and the like in `agreement.py`) is a function of the column
sums, so one resampling serves them all by a matrix product. Shapes: S seeds, P prompts, C columns, D draws.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Bootstrap",
    "Estimate",
    "Floats",
    "Statistic",
    "Table",
    "holm",
    "mean_of",
    "mean_table",
    "ratio",
    "table_of",
    "wilson",
]

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

FEW = 10  # a rate with fewer events (or non-events) gets Wilson's interval: percentiles of the bootstrap are too short
MAX_CELLS = 100_000_000  # draws x prompts that are kept; beyond 10,000 prompts there are fewer draws
BLOCK_CELLS = 200_000  # draws x prompts worked on at once: what fits into a processor's cache


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval (or whatever level was asked for).

    `num` values on `num_prompts` different prompts; `per_seed` has the figure of each seed alone. `method` is
    `bootstrap`, or `wilson` / `mover` where events are too few for it. `p_value` belongs to differences: two-sided.
    """

    value: float
    low: float
    high: float
    num: int
    num_prompts: int
    per_seed: Mapping[int, float] = field(default_factory=dict)
    method: str = "bootstrap"
    p_value: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0

    def complement(self) -> "Estimate":
        """The rate of the opposite event: 1 - the figure, bounds swapped."""
        seeds = {seed: 1 - value for seed, value in self.per_seed.items()}
        return replace(self, value=1 - self.value, low=1 - self.high, high=1 - self.low, per_seed=seeds)


@dataclass(frozen=True, slots=True)
class Table:
    """Sums per prompt in one seed: `sums` (P, C), row k belongs to `prompts[k]`; prompts are unique and sorted.

    `num` values went in. `is_rate` says that they are events (0 or 1, perhaps 1/2 for a tie).
    """

    seed: int
    prompts: tuple[str, ...]
    sums: Floats
    num: int
    is_rate: bool = False

    def within(self, prompts: Iterable[str]) -> "Table":
        """The same sums among more prompts, on which nothing was counted: tables that share their prompts share draws.

        What is counted may then differ in number from draw to draw, as it would from sample to sample.
        """
        missing = sorted(set(prompts) - set(self.prompts))
        if not missing:
            return self
        sums = np.vstack([self.sums, np.zeros((len(missing), self.sums.shape[1]))])
        names = np.array([*self.prompts, *missing])
        order = np.argsort(names)
        return replace(self, prompts=tuple(str(n) for n in names[order]), sums=sums[order])


# --- tables, and the mean ---------------------------------------------------------------------------------------------


def table_of(seed: int, prompts: Sequence[str], columns: Floats, num: int, is_rate: bool = False) -> Table:
    """Add up `columns` (N, C) by prompt; `num` of the N values count."""
    names, index = np.unique(np.asarray(prompts, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), columns.shape[1]))
    np.add.at(sums, index, columns)
    return Table(seed, tuple(str(n) for n in names), sums, num, is_rate)


def mean_table(
    seed: int, prompts: Sequence[str], values: Sequence[float] | Floats, *, is_rate: bool | None = None
) -> Table:
    """For `mean_of`. NaN means that the measure does not apply there: the prompt stays, the value does not count.

    `is_rate` None looks at the values: events are all 0 or 1.
    """
    array = np.asarray(values, dtype=np.float64)
    counts = ~np.isnan(array)
    if is_rate is None:
        is_rate = bool(counts.any()) and bool(np.isin(array[counts], (0.0, 1.0)).all())
    return table_of(seed, prompts, np.column_stack([np.where(counts, array, 0.0), counts]), int(counts.sum()), is_rate)


def mean_of(sums: Floats) -> Floats:
    """(N, 2) sums of values and counts -> (N,) means; NaN where nothing counts."""
    return ratio(sums[:, 0], sums[:, 1])


def ratio(top: Floats, bottom: Floats) -> Floats:
    """Element by element; NaN where `bottom` is 0."""
    quotient: Floats = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
    return quotient


# --- the bootstrap ----------------------------------------------------------------------------------------------------


class _Resampler:
    """Draws seeds, then prompts, with replacement; which ones depends on their names and the seed alone."""

    def __init__(self, num_draws: int, seed: int) -> None:
        self._num_draws = num_draws
        self._seed = seed
        self._weights: dict[tuple[str, ...], NDArray[np.uint8]] = {}

    def sums(self, tables: Sequence[Table]) -> Floats:
        """(D, C): column sums over all tables, of every resample. `tables` are in order of seeds."""
        resampled = [self._sums_of(t) for t in tables]
        num = min(len(r) for r in resampled)
        picks = self._rng("seeds", *(str(t.seed) for t in tables)).integers(len(tables), size=(num, len(tables)))
        crossed = len({t.prompts for t in tables}) == 1
        total = np.zeros((num, tables[0].sums.shape[1]))
        for slot in range(len(tables)):
            for s, own in enumerate(resampled):
                # a seed that is drawn twice brings other prompts the second time, unless all seeds share them
                rows = own[:num] if crossed else np.roll(own[:num], slot * (num // len(tables)), axis=0)
                total += np.where(picks[:, slot, None] == s, rows, 0.0)
        return total

    def _sums_of(self, table: Table) -> Floats:
        """(D, C): column sums of every resample of the table's prompts."""
        weights = self._weights_of(table.prompts)
        step = max(1, BLOCK_CELLS // len(table.prompts))
        blocks = [weights[i : i + step].astype(np.float64) @ table.sums for i in range(0, len(weights), step)]
        return np.concatenate(blocks)

    def _weights_of(self, prompts: tuple[str, ...]) -> NDArray[np.uint8]:
        """(D, P) how often each prompt is drawn in each resample; a function of the prompts' names and the seed."""
        if prompts not in self._weights:
            size = len(prompts)
            num_draws = min(self._num_draws, max(1, MAX_CELLS // size))
            weights = np.empty((num_draws, size), dtype=np.uint8)
            rng = self._rng("prompts", *prompts)
            step = max(1, BLOCK_CELLS // size)
            for start in range(0, num_draws, step):
                rows = min(step, num_draws - start)
                drawn = rng.integers(size, size=(rows, size), dtype=np.int32)
                drawn += np.arange(rows, dtype=np.int32)[:, None] * size
                weights[start : start + rows] = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
            self._weights[prompts] = weights
        return self._weights[prompts]

    def _rng(self, *parts: str) -> np.random.Generator:
        digest = hashlib.sha256("\0".join((str(self._seed), *parts)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))


class Bootstrap:
    """Percentile bootstrap over seeds, then prompts. The same prompts always get the same draws (so pairs stay pairs).

    Seeds whose prompts are the same share the draw of prompts (crossed); seeds with prompts of their own are drawn
    independently (nested). With few seeds, drawing them again understates how much seeds differ: `per_seed` tells.
    """

    def __init__(self, *, num_draws: int = 10_000, seed: int = 0, level: float = 0.95) -> None:
        self._level = level
        self._resampler = _Resampler(num_draws, seed)
        self._memory: dict[tuple[object, ...], tuple[Sequence[Table], Floats]] = {}

    def estimate(self, tables: Sequence[Table], statistic: Statistic = mean_of) -> Estimate | None:
        """The statistic over all tables pooled, with its interval; None where nothing counts."""
        tables = _in_order(tables)
        pooled = _point(tables, statistic)
        if math.isnan(pooled):
            return None
        draws = self._draws(tables, statistic)
        low, high = self._percentiles(draws)
        result = Estimate(
            value=pooled,
            low=min(low, pooled),
            high=max(high, pooled),
            num=sum(t.num for t in tables),
            num_prompts=len({p for t in tables for p in _counted_prompts(t)}),
            per_seed={t.seed: v for t in tables if not math.isnan(v := _point([t], statistic))},
        )
        return self._with_few_events(result, tables, draws) if statistic is mean_of else result

    def difference(self, a: Sequence[Table], b: Sequence[Table], statistic: Statistic = mean_of) -> Estimate | None:
        """Statistic of `a` minus statistic of `b`: paired by seed (where they have seeds in common) and by prompt."""
        common = {t.seed for t in a} & {t.seed for t in b}
        if common:
            a, b = [t for t in a if t.seed in common], [t for t in b if t.seed in common]
        first, second = self.estimate(a, statistic), self.estimate(b, statistic)
        if first is None or second is None:
            return None
        value = first.value - second.value
        seeds = first.per_seed.keys() & second.per_seed.keys()
        result = replace(
            first,
            value=value,
            num=min(first.num, second.num),
            num_prompts=min(first.num_prompts, second.num_prompts),
            per_seed={s: first.per_seed[s] - second.per_seed[s] for s in sorted(seeds)},
        )
        if "wilson" in (first.method, second.method):
            return self._mover(result, first, second)
        draws_a, draws_b = self._draws(a, statistic), self._draws(b, statistic)
        num = min(len(draws_a), len(draws_b))
        draws = draws_a[:num] - draws_b[:num]
        low, high = self._percentiles(draws)
        beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
        p_value = min(1.0, 2 * (beyond + 1) / (num + 1))
        return replace(result, low=min(low, value), high=max(high, value), method="bootstrap", p_value=p_value)

    def _draws(self, tables: Sequence[Table], statistic: Statistic) -> Floats:
        """(D,) the statistic of each resample: S seeds with replacement, the prompts of each with replacement."""
        tables = _in_order(tables)
        key = (statistic, *map(id, tables))  # tables are kept with their draws, so that an id stays theirs
        if key not in self._memory:
            self._memory[key] = tables, statistic(self._resampler.sums(tables))
        return self._memory[key][1]

    def _percentiles(self, draws: Floats) -> tuple[float, float]:
        tail = (1 - self._level) / 2
        low, high = np.nanquantile(draws, [tail, 1 - tail])
        return float(low), float(high)

    def _with_few_events(self, result: Estimate, tables: Sequence[Table], draws: Floats) -> Estimate:
        """Wilson's interval for a rate of few events: after 0 of 200, all resamples are 0 and the truth need not be.

        The effective number of trials is what gives the bootstrap's variance, p (1 - p) / var, at most `num`; with no
        variance to go by, the number of prompts.
        """
        if not all(t.is_rate for t in tables if t.num):
            return result
        variance = float(np.nanvar(draws))
        events = result.value * result.num
        if variance > 0 and min(events, result.num - events) >= FEW:
            return result
        spread = result.value * (1 - result.value)
        trials = min(result.num, spread / variance) if variance > 0 else min(result.num, result.num_prompts)
        low, high = wilson(result.value * trials, trials, level=self._level)
        return replace(result, low=low, high=high, method="wilson")

    def _mover(self, result: Estimate, a: Estimate, b: Estimate) -> Estimate:
        """Interval of a difference from two intervals (Newcombe 1998, method 10); ignores pairing, so it is wide."""
        low = result.value - math.hypot(a.value - a.low, b.high - b.value)
        high = result.value + math.hypot(a.high - a.value, b.value - b.low)
        reach = result.value - low if result.value > 0 else high - result.value
        normal = NormalDist()
        z = normal.inv_cdf((1 + self._level) / 2) * abs(result.value) / reach if reach > 0 else 0.0
        return replace(result, low=low, high=high, method="mover", p_value=2 * (1 - normal.cdf(z)))


def _in_order(tables: Sequence[Table]) -> list[Table]:
    return sorted((t for t in tables if t.prompts), key=lambda t: t.seed)


def _point(tables: Sequence[Table], statistic: Statistic) -> float:
    if not tables:
        return math.nan
    return float(statistic(np.sum([t.sums.sum(axis=0) for t in tables], axis=0)[None, :])[0])


def _counted_prompts(table: Table) -> Iterable[str]:
    """The prompts on which something was counted."""
    return compress(table.prompts, np.abs(table.sums).sum(axis=1).tolist())


# --- small formulas ---------------------------------------------------------------------------------------------------


def wilson(num_events: float, num: float, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927); `num` may be an effective, broken number of trials."""
    if num <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate = num_events / num
    centre = (rate + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(rate * (1 - rate) / num + z * z / (4 * num * num))
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979), in the order given."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted
